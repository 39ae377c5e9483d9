"""Pixel side of the conversion: images a second against a plain Pillow loop, quality, and where the time goes.

    python benchmarks/data_pixels.py [--images 1500] [--workers 2] [--folder DIR_OF_JPEGS]

Same images, size rule, JPEG quality and chroma subsampling on both sides, bicubic interpolation on
both; each runs in a process of its own, timed from its start. Quality is PSNR in dB: of the stage's
images against those of the plain loop, and of either kernel against ground truth, where an image is
shrunk and enlarged again by it. Writes benchmarks/results/data_pixels.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from measuring import measured
from PIL import Image

from coordexp.geometry.resize import grid_size

BLOCKS, QUALITY, CHROMA_420 = 768, 95, 2
SAMPLE = 40  # images whose quality and steps are looked at


def target_size(size: tuple[int, int]) -> tuple[int, int]:
    return grid_size(*size, "fill", factor=32, max_blocks=BLOCKS, min_blocks=4)


def plain_loop(sources: list[Path], out: Path) -> None:
    """Open, convert, resize, save, one after the other."""
    out.mkdir()
    for path in sources:
        image = Image.open(path).convert("RGB")
        image = image.resize(target_size(image.size), Image.Resampling.BICUBIC)
        image.save(out / path.name, quality=QUALITY, subsampling=CHROMA_420)


def stage(manifest: Path, out: Path, workers: int) -> None:
    from coordexp.datasets.convert import ConvertOptions, convert

    options = ConvertOptions(num_workers=workers, jpeg_quality=QUALITY)
    convert(manifest, out / "train.jsonl", out / "images", options, BLOCKS, out / "stats.json")


def quality(sources: list[Path], ours: Path, plain: Path) -> dict[str, float]:
    """Mean PSNR in dB; the source and either result of the same image, and what a kernel gives back of an image."""
    import numpy as np

    from coordexp.datasets.images import resample

    def psnr(a: Image.Image, b: Image.Image) -> float:
        return 10 * np.log10(255**2 / np.mean((np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) ** 2))

    rows = []
    for path in sources:
        with Image.open(path) as opened, Image.open(ours / path.name) as a, Image.open(plain / path.name) as b:
            image = opened.convert("RGB")
            scale = image.width / a.width
            small = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
            pillow = small.resize(image.size, Image.Resampling.BICUBIC)
            rows.append((psnr(a, b), psnr(resample(small, image.size), image), psnr(pillow, image)))
    names = ("ours_against_plain_loop", "ours_against_truth", "plain_loop_against_truth")
    return dict(zip(names, np.mean(rows, axis=0).round(2).tolist(), strict=True))


def steps(sources: list[Path], out: Path) -> dict[str, float]:
    """CPU milliseconds per image of each step of the stage's usual case, on one core."""
    import cv2
    import numpy as np

    out.mkdir()
    spent = dict.fromkeys(("read", "decode", "resize", "encode", "write"), 0.0)
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]

    def timed(name, function, *args):
        start = time.process_time()
        value = function(*args)
        spent[name] += time.process_time() - start
        return value

    cv2.setNumThreads(1)
    for path in sources:
        data = timed("read", lambda path: np.fromfile(path, np.uint8), path)
        pixels = timed("decode", cv2.imdecode, data, cv2.IMREAD_COLOR)
        size = target_size(pixels.shape[1::-1])
        large = timed("resize", lambda p, s: cv2.resize(p, s, interpolation=cv2.INTER_CUBIC), pixels, size)
        encoded = timed("encode", lambda p: cv2.imencode(".jpg", p, options)[1], large)
        timed("write", lambda path, data: (out / path.name).write_bytes(data), path, encoded)
    return {name: round(seconds / len(sources) * 1000, 2) for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="real JPEGs to use instead of generated ones")
    args = parser.parse_args()
    from data_generated import write_photographs

    from coordexp.datasets.images import resampler_version
    from coordexp.runtime.io import write_json

    load = round(os.getloadavg()[0], 2)
    work = Path(tempfile.mkdtemp(prefix="coordexp-bench-"))
    try:
        originals = sorted(args.folder.rglob("*.jpg")) if args.folder else None
        manifest = write_photographs(work, args.images, originals=originals)
        sources = sorted((work / "train2017").iterdir())
        plain = measured(plain_loop, sources, work / "plain")
        ours = measured(stage, manifest, work / "out", args.workers)
        written = work / "out" / "images" / "train2017"
        result = {
            "cores": os.cpu_count(),
            "workers": args.workers,
            "load_average_at_start": load,
            "images": len(sources),
            "source": "photographs" if originals else "generated",
            "resampler": resampler_version(),
            "plain_loop": plain,
            "stage": ours,
            "again": measured(stage, manifest, work / "out", args.workers),
            "times_faster": round(plain["seconds"] / ours["seconds"], 2),
            "times_less_cpu": round(plain["cpu_seconds"] / ours["cpu_seconds"], 2),
            "psnr_db": quality(sources[:SAMPLE], written, work / "plain"),
            "cpu_ms_per_image": steps(sources[:SAMPLE], work / "steps"),
        }
    finally:
        shutil.rmtree(work)
    for name, value in result.items():
        print(f"{name}: {value}")
    path = Path(__file__).parent / "results" / "data_pixels.json"
    write_json(path, result)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
