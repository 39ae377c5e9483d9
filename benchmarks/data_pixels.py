"""Pixel side of the conversion: pictures a second against a plain Pillow loop, and where the time goes.

    python benchmarks/data_pixels.py [--pictures 400] [--workers 2] [--folder DIR_OF_JPEGS]

Same pictures, size rule, filter (bicubic), JPEG quality and chroma subsampling on both sides.
Writes benchmarks/results/data_pixels.json.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
import time
from pathlib import Path

from data_annotations import measured
from data_generated import write_photographs
from PIL import Image

from coordexp.data import pictures
from coordexp.data.convert import ConvertOptions, convert
from coordexp.geometry.resize import grid_size
from coordexp.io import write_json

BLOCKS, QUALITY = 768, 95


def target_size(image: Image.Image) -> tuple[int, int]:
    return grid_size(*image.size, "fill", factor=32, max_blocks=BLOCKS, min_blocks=4)


def plain_loop(sources: list[Path], out: Path) -> None:
    """Open, convert, resize, save, one after the other."""
    out.mkdir()
    for path in sources:
        image = Image.open(path).convert("RGB")
        image = image.resize(target_size(image), Image.Resampling.BICUBIC)
        image.save(out / path.name, quality=QUALITY, subsampling=pictures.subsampling(QUALITY))


def stage(manifest: Path, out: Path, workers: int) -> None:
    options = ConvertOptions(num_workers=workers, jpeg_quality=QUALITY)
    convert(manifest, out / "train.jsonl", out / "images", options, BLOCKS, out / "stats.json")


def steps(sources: list[Path]) -> dict[str, float]:
    """CPU milliseconds a picture of each step, on one core."""
    spent = {"read": 0.0, "decode": 0.0, "resize": 0.0, "encode": 0.0, "write": 0.0}

    def timed(name, function):
        start = time.process_time()
        value = function()
        spent[name] += time.process_time() - start
        return value

    with tempfile.TemporaryDirectory() as folder:
        for path in sources:
            data = timed("read", path.read_bytes)
            image = timed("decode", lambda data=data: Image.open(io.BytesIO(data)).convert("RGB"))
            large = timed("resize", lambda image=image: pictures.resample(image, target_size(image)))
            buffer = io.BytesIO()
            options = {"quality": QUALITY, "subsampling": pictures.subsampling(QUALITY)}
            timed("encode", lambda large=large, buffer=buffer, o=options: large.save(buffer, "JPEG", **o))
            timed("write", lambda path=path, buffer=buffer: (Path(folder) / path.name).write_bytes(buffer.getvalue()))
    return {name: round(seconds / len(sources) * 1000, 2) for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="real JPEGs to use instead of generated ones")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="coordexp-bench-"))
    try:
        originals = sorted(args.folder.rglob("*.jpg")) if args.folder else None
        manifest = write_photographs(work, args.pictures, originals=originals)
        sources = sorted((work / "train2017").iterdir())
        result = {
            "cores": os.cpu_count(),
            "workers": args.workers,
            "pictures": len(sources),
            "resampler": pictures.resampler(),
            "plain_loop": measured(plain_loop, sources, work / "plain"),
            "stage": measured(stage, manifest, work / "out", args.workers),
            "again": measured(stage, manifest, work / "out", args.workers),
            "cpu_ms_a_picture": steps(sources[:60]),
        }
        plain, ours = result["plain_loop"], result["stage"]
        result["times_faster"] = round(plain["seconds"] / ours["seconds"], 2)
        result["times_less_cpu"] = round(plain["cpu_seconds"] / ours["cpu_seconds"], 2)
    finally:
        shutil.rmtree(work)
    for name, value in result.items():
        print(f"{name}: {value}")
    path = Path(__file__).parent / "results" / "data_pixels.json"
    write_json(path, result)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
