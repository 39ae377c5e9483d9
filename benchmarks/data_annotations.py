"""Annotation side of the conversion (no pixels): speed against a plain json loop, memory, and growth.

    python benchmarks/data_annotations.py [--images 100000] [--compare 20000] [--workers 2]

Both sides get the same file and write the same records and counts, which is checked; each runs in a
process of its own, timed from its start, imports included. Images are neither looked up nor opened.
Writes benchmarks/results/data_annotations.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path

import plain_conversion
from measuring import measured

BLOCKS = 768


def plain_loop(manifest: Path, out: Path) -> None:
    plain_conversion.convert(manifest, out, BLOCKS)


def without_pixels(manifest: Path, out: Path, workers: int) -> None:
    """The stage without its work on image files."""
    from coordexp.datasets import chunk_conversion
    from coordexp.datasets import convert as stage

    chunk_conversion.find_image = lambda name, dirs, from_url=False: (0, name.rsplit("/", 1)[-1])
    chunk_conversion.prepare_image = lambda *_, **__: "skipped"
    chunk_conversion.exif_convention = lambda *_: None
    options = stage.ConvertOptions(num_workers=workers, on_duplicate="ignore")
    stage.convert(manifest, out / "train.jsonl", out / "images", options, BLOCKS, out / "stats.json")


def check_equal(ours: Path, plain: Path) -> None:
    """Both wrote the same records and came to the same counts."""
    with (ours / "train.jsonl").open("rb") as a, (plain / "train.jsonl").open("rb") as b:
        for number, (x, y) in enumerate(itertools.zip_longest(a, b, fillvalue=b"null"), start=1):
            if json.loads(x) != json.loads(y):
                raise SystemExit(f"line {number} differs:\n{x.decode()}{y.decode()}")
    stats = json.loads((ours / "stats.json").read_text())
    round_trip = stats["round_trip"]
    found = {
        "images": stats["images"]["written"],
        "objects": stats["objects"]["written"],
        "clipped": stats["objects"]["clipped"],
        **{
            f"{s}:good": round(round_trip[s]["share_iou_0.95"] * round_trip[s]["objects"])
            for s in plain_conversion.SIZES
        },
    }
    if found != (expected := json.loads((plain / "stats.json").read_text())):
        raise SystemExit(f"the counts differ: {found} and {expected}")


def compare(manifest: Path, out: Path, row: dict, work: Path) -> None:
    """Run the plain loop on the same file and put the ratios into `row`."""
    row["plain_loop"] = measured(plain_loop, manifest, work / "plain")
    check_equal(out, work / "plain")
    shutil.rmtree(work / "plain")
    row["times_faster"] = round(row["plain_loop"]["seconds"] / row["seconds"], 1)
    row["times_less_cpu"] = round(row["plain_loop"]["cpu_seconds"] / row["cpu_seconds"], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--compare", type=int, default=20_000, help="size at which the plain loop runs too")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    from data_generated import write_lvis

    from coordexp.runtime.io import write_json

    work = Path(tempfile.mkdtemp(prefix="coordexp-bench-"))
    result: dict = {
        "cores": os.cpu_count(),
        "workers": args.workers,
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "runs": {},
    }
    try:
        for count in sorted({1000, args.compare, args.images // 2, args.images}):
            manifest, out = write_lvis(work / str(count), count), work / f"out{count}"
            row = measured(without_pixels, manifest, out, args.workers)
            row["annotation_file_mb"] = round((manifest.parent / "annotations.json").stat().st_size / 1e6)
            row["cpu_ms_per_image"] = round(row["cpu_seconds"] / count * 1000, 4)
            if count == args.compare:
                compare(manifest, out, row, work)
            result["runs"][count] = row
            print(count, row, flush=True)
            shutil.rmtree(work / str(count))
            shutil.rmtree(out)
    finally:
        shutil.rmtree(work)
    path = Path(__file__).parent / "results" / "data_annotations.json"
    write_json(path, result)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
