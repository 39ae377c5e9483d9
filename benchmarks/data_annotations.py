"""Annotation side of the conversion (no pixels): speed against a plain json loop, memory, and growth.

    python benchmarks/data_annotations.py [--pictures 100000] [--compare 10000] [--workers 2]

Writes benchmarks/results/data_annotations.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

from data_generated import write_lvis

from coordexp.data import convert as stage
from coordexp.geometry.resize import grid_size
from coordexp.io import write_json

BLOCKS = 768


def plain_loop(manifest: Path, out: Path) -> None:
    """The obvious program: json.load, group, one annotation after the other, json.dumps."""
    data = json.loads((manifest.parent / "annotations.json").read_text())
    names = {c["id"]: c["name"].replace("_", " ") for c in data["categories"]}
    grouped = defaultdict(list)
    for a in data["annotations"]:
        grouped[a["image_id"]].append(a)
    good = total = 0
    with out.open("w") as lines:
        for image in data["images"]:
            width, height = image["width"], image["height"]
            new_w, new_h = grid_size(width, height, "fill", factor=32, max_blocks=BLOCKS, min_blocks=4)
            objects = []
            for a in grouped[image["id"]]:
                x, y, w, h = a["bbox"]
                if w <= 0 or h <= 0:
                    continue
                x1, y1 = min(max(x, 0), width), min(max(y, 0), height)
                x2, y2 = min(max(x + w, 0), width), min(max(y + h, 0), height)
                if x2 <= x1 or y2 <= y1:
                    continue
                norm = [x1 / width, y1 / height, x2 / width, y2 / height]
                box = [round(norm[0] * new_w), round(norm[1] * new_h), round(norm[2] * new_w), round(norm[3] * new_h)]
                if box[2] <= box[0]:
                    box[2] = box[0] + 1
                if box[3] <= box[1]:
                    box[3] = box[1] + 1
                back = [round(v * 999) / 999 for v in norm]
                iw = max(0, min(norm[2], back[2]) - max(norm[0], back[0]))
                ih = max(0, min(norm[3], back[3]) - max(norm[1], back[1]))
                areas = (norm[2] - norm[0]) * (norm[3] - norm[1]) + (back[2] - back[0]) * (back[3] - back[1])
                good += iw * ih / (areas - iw * ih) >= 0.95
                total += 1
                name = names[a["category_id"]]
                objects.append({"desc": name, "category_id": a["category_id"], "norm": norm, "bbox_2d": box})
            objects.sort(key=lambda o: (o["norm"][1], o["norm"][0], o["norm"][3], o["norm"][2]))
            record = {
                "images": [f"images/train2017/{image['coco_url'].split('/')[-1]}"],
                "width": new_w,
                "height": new_h,
                "coord_space": "pixel",
                "objects": objects,
                "metadata": {
                    "image_id": image["id"],
                    "source_width": width,
                    "source_height": height,
                    "neg_category_ids": image["neg_category_ids"],
                    "not_exhaustive_category_ids": image["not_exhaustive_category_ids"],
                },
            }
            lines.write(json.dumps(record) + "\n")
    print(f"plain loop: {total} objects, {good / total:.3f} at IoU .95")


def without_pixels(manifest: Path, out: Path, workers: int) -> None:
    """The stage as it is, with the pictures left out."""
    stage.pictures.find = lambda name, dirs, from_url=False: (0, name.rsplit("/", 1)[-1])
    stage.pictures.prepare = lambda *a: "left out"
    options = stage.ConvertOptions(num_workers=workers)
    stage.convert(manifest, out / "train.jsonl", out / "images", options, BLOCKS, out / "stats.json")


def measured(function, *args) -> dict:
    """Seconds and peak memory (proportional set size of all processes together, MB) of a call in a fresh process."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    peak = {"mb": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak["mb"] = max(peak["mb"], sum(_pss(pid) for pid in _family(process.pid)))

    start, before = time.perf_counter(), _cpu()
    process.start()
    watcher = threading.Thread(target=watch)
    watcher.start()
    process.join()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")
    return {"seconds": round(seconds, 2), "cpu_seconds": round(_cpu() - before, 2), "peak_mb": round(peak["mb"])}


def _cpu() -> float:
    """CPU seconds of all finished children and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _family(pid: int) -> list[int]:
    out = [pid]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(fields[1]) == pid:
            out += _family(int(path.parent.name))
    return out


def _pss(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--compare", type=int, default=10_000, help="size at which the plain loop runs too")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="coordexp-bench-"))
    result: dict = {"cores": os.cpu_count(), "workers": args.workers, "runs": {}}
    try:
        for count in sorted({1000, args.compare, args.pictures // 2, args.pictures}):
            manifest = write_lvis(work / str(count), count)
            row = measured(without_pixels, manifest, work / f"out{count}", args.workers)
            row["annotation_file_mb"] = round((manifest.parent / "annotations.json").stat().st_size / 1e6)
            row["cpu_ms_per_picture"] = round(row["cpu_seconds"] / count * 1000, 4)
            if count == args.compare:
                row["plain_loop"] = measured(plain_loop, manifest, work / "plain.jsonl")
                row["times_faster"] = round(row["plain_loop"]["seconds"] / row["seconds"], 1)
                row["times_less_cpu"] = round(row["plain_loop"]["cpu_seconds"] / row["cpu_seconds"], 1)
            result["runs"][count] = row
            print(count, row, flush=True)
            shutil.rmtree(work / str(count))
            shutil.rmtree(work / f"out{count}")
    finally:
        shutil.rmtree(work)
    path = Path(__file__).parent / "results" / "data_annotations.json"
    write_json(path, result)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
