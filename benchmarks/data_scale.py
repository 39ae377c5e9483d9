"""Memory of the stages between conversion and training, per record: is a set of 10 million records within 1 GB?

    python benchmarks/data_scale.py [--records 1000000]

Each stage runs in a process of its own on generated records with one object. Its memory is the largest anonymous
resident memory (files that are mapped or cached do not count) above that after its imports. Writes
benchmarks/results/data_scale.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

TARGET = 10_000_000
EVERY = 0.01  # seconds between two samples of the memory
SEED = 17


def generate(path: Path, count: int) -> None:
    """Records of one object in pixel space."""
    with path.open("w") as handle:
        for n in range(count):
            box = [n % 50, n % 40, n % 50 + 10, n % 40 + 20]
            norm = [box[0] / 640, box[1] / 480, box[2] / 640, box[3] / 480]
            objects = [{"desc": "cat", "category_id": 1, "norm": norm, "bbox_2d": box}]
            metadata = {"image_id": n, "source_width": 640, "source_height": 480, "file_name": f"{n:09d}.jpg"}
            record = {"images": [f"images/{n:09d}.jpg"], "width": 640, "height": 480, "coord_space": "pixel"}
            handle.write(json.dumps({**record, "objects": objects, "metadata": metadata}) + "\n")


def tokenize(folder: Path, count: int) -> Iterator[None]:
    from coordexp.datasets.tokenize import tokenize

    yield
    tokenize(folder / "a.jsonl", folder / "a.coord.jsonl")


def tiny_split(folder: Path, count: int) -> Iterator[None]:
    from coordexp.datasets.splits import tiny_split

    yield
    tiny_split(folder / "a.jsonl", folder / "tiny.jsonl", count // 100, SEED)


def calibration_split(folder: Path, count: int) -> Iterator[None]:
    from coordexp.datasets.splits import calibration_split

    yield
    names = ("a.jsonl", "a.coord.jsonl", "calibration.jsonl", "rest.jsonl", "rest.coord.jsonl")
    calibration_split(*(folder / name for name in names), count // 100, SEED)


def mixture(folder: Path, count: int) -> Iterator[None]:
    from coordexp.datasets.mixture import Mixture, MixtureConfig, MixtureSource

    yield
    files = [str(folder / name) for name in ("a.coord.jsonl", "rest.coord.jsonl")]
    sources = {name: MixtureSource(path, ratio=0.5) for name, path in zip("ab", files, strict=True)}
    opened = Mixture(MixtureConfig(sources), "token")
    for number in (0, 1):
        order = opened.epoch(number)
    source, line = opened.locate(order[-1])
    opened.record(source, line)


def training_index(folder: Path, count: int) -> Iterator[None]:
    from swift.dataset import load_dataset
    from swift.pipelines.train import sft
    from swift.trainers import mixin

    from coordexp.datasets.mixture import single_file_mixture
    from coordexp.datasets.samples import SampleOptions, Samples
    from coordexp.training.ms_swift import dataset, trainer

    yield
    samples = Samples(single_file_mixture(folder / "a.coord.jsonl"), "token", SampleOptions(), None)
    dataset.samples = lambda split: samples
    dataset.register(), trainer.register()
    rows = load_dataset([dataset.TRAIN], shuffle=False)[0]
    encoded = sft.LazyLLMDataset(rows, lambda row, **_: samples.get(row["index"], 0), random_state=SEED)
    seen = 0
    for batch in mixin.BatchSamplerShard(len(encoded), 8, True, False, SEED):
        seen += len(batch)
        if seen % 80_000 == 8:
            encoded[batch[0]]
    if seen != count:
        raise SystemExit(f"{seen} rows in the batches, expected {count}")


STAGES = (tokenize, tiny_split, calibration_split, mixture, training_index)


def anonymous_mb() -> float:
    """Anonymous resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def measure(stage, folder: Path, count: int, out: Path) -> None:
    """Run a stage and write its figures to `out`."""
    call = stage(folder, count)
    next(call)
    before, seconds = anonymous_mb(), time.process_time()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(EVERY):
            peak[0] = max(peak[0], anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    next(call, None)
    done.set()
    watcher.join()
    per_record = (peak[0] - before) * 2**20 / count
    figures = {
        "imports_mb": round(before),
        "peak_mb": round(peak[0]),
        "bytes_per_record": round(per_record, 1),
        "cpu_us_per_record": round((time.process_time() - seconds) / count * 1e6, 1),
        "mb_at_10m": round(before + per_record * TARGET / 2**20),
    }
    out.write_text(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    args = parser.parse_args()
    from coordexp.runtime.io import read_json, write_json

    folder = Path(tempfile.mkdtemp(prefix="coordexp-bench-"))
    result: dict = {"records": args.records, "stages": {}}
    try:
        generate(folder / "a.jsonl", args.records)
        for stage in STAGES:
            process = multiprocessing.get_context("spawn").Process(
                target=measure, args=(stage, folder, args.records, folder / "out.json")
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{stage.__name__} failed")
            result["stages"][stage.__name__] = read_json(folder / "out.json")
            print(stage.__name__, result["stages"][stage.__name__], flush=True)
    finally:
        shutil.rmtree(folder)
    path = Path(__file__).parent / "results" / "data_scale.json"
    write_json(path, result)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
