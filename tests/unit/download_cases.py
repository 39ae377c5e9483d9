"""A small LVIS on a local web server, for the tests of downloads."""

import io
import json
from contextlib import contextmanager
from pathlib import Path

import yaml
from dataset_cases import draw_image, serving, zipped

from coordexp.datasets.download import provide
from coordexp.runtime.http_download import Policy

QUICK = Policy(attempts=2, timeout=2, first_wait=0.01, longest_wait=0.02)


CONFIG = Path(__file__).parents[2] / "config" / "config.yaml"


def annotation_bytes(*ids: tuple[int, str]) -> bytes:
    images = [{"id": i, "coco_url": f"http://x/{f}/{i:012d}.jpg", "width": 64, "height": 64} for i, f in ids]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    return json.dumps(content).encode()


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    draw_image(64, 64, seed).save(buffer, "JPEG")
    return buffer.getvalue()


@contextmanager
def serving_lvis():
    """A small LVIS on the web: two annotation files, two folders of images."""
    with serving() as running:
        running.content = {
            "/train.json.zip": zipped({"lvis_v1_train.json": annotation_bytes((1, "train2017"))}),
            "/val.json.zip": zipped({"lvis_v1_val.json": annotation_bytes((2, "train2017"), (3, "val2017"))}),
            "/train2017.zip": zipped({f"train2017/{i:012d}.jpg": jpeg(i) for i in (1, 2)}),
            "/val2017.zip": zipped({f"val2017/{3:012d}.jpg": jpeg(3)}),
            "/plain.json": annotation_bytes((3, "val2017")),
        }
        yield running


def lvis(server) -> dict:
    """The entry of the shipped configuration with the URLs of the local server."""
    entry = yaml.safe_load(CONFIG.read_text())["datasets"]["lvis"]
    files = {
        "annotations/lvis_v1_train.json": "/train.json.zip",
        "annotations/lvis_v1_val.json": "/val.json.zip",
        "images/train2017": "/train2017.zip",
        "images/val2017": "/val2017.zip",
    }
    assert set(entry["downloads"]) == set(files)
    entry["downloads"] = {target: {"url": server.url + path} for target, path in files.items()}
    return entry


def run(entry, tmp_path, split="val", name="lvis"):
    raw = tmp_path / name / "raw"
    return provide(name, entry, split, raw, tmp_path / name / f"{split}.source.json", policy=QUICK), raw


def paths_of(server):
    return sorted(path for path, _ in server.requests)
