"""Small datasets on disk, and a web server that can misbehave, for the tests of the data stages."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from coordexp.datasets.convert import ConvertOptions, convert
from coordexp.datasets.source import Source
from coordexp.records import Metadata, Object, Record, read_records
from coordexp.runtime.io import sha256_file, write_json

CATEGORIES = [
    {"id": 3, "name": "baseball_bat", "synonyms": ["baseball_bat", "bat"], "frequency": "c"},
    {"id": 7, "name": "cat", "synonyms": ["cat", "kitty"], "frequency": "f"},
]


def draw_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth colourful image, which JPEG preserves almost exactly."""
    ys, xs = np.mgrid[0:height, 0:width]
    waves = [np.sin(xs / 17 + seed), np.cos(ys / 13 + seed), np.sin((xs + ys) / 29)]
    return Image.fromarray((np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8))


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def rectangle(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def write_dataset(
    folder: Path,
    images: list[dict] | None = None,
    annotations: list[dict] | None = None,
    categories: list[dict] | None = None,
    format: str = "lvis",
) -> Path:
    """A dataset of a few images under `folder`; returns its manifest. Existing images are kept."""
    if images is None:
        images = [{"id": i, "file_name": f"{i:04d}.jpg", "width": 160, "height": 120} for i in range(1, 7)]
    if annotations is None:
        boxes = [(i["id"], 7, [10.4 + i["id"], 20.2, 60, 40]) for i in images] + [
            (i["id"], 3, [0, 0, 30, 30]) for i in images
        ]
        annotations = [
            {"id": k, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "segmentation": rectangle(*b)}
            for k, (i, c, b) in enumerate(boxes, 1)
        ]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for image in images:
        name = image.get("file_name")
        if name and not (folder / "images" / name).exists():
            size = image.get("width") or 160, image.get("height") or 120
            draw_image(*size, seed=int(image["id"])).save(folder / "images" / name, quality=95)
    path = folder / "annotations.json"
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories or CATEGORIES}
    path.write_text(json.dumps(content))
    manifest = folder / "train.source.json"
    write_json(manifest, source_of(path, ["images"], format))
    return manifest


def source_of(
    annotations: Path, image_dirs: list[str], format: str = "lvis", absolute: bool = False, **facts
) -> Source:
    """A manifest for an annotation file, which is in the same folder unless `absolute`."""
    facts = {"dataset": "test", "split": "train", "federated": format == "lvis", **facts}
    return Source(
        format=format,
        annotations=str(annotations) if absolute else annotations.name,
        image_dirs=image_dirs,
        annotations_sha256=sha256_file(annotations),
        **facts,
    )


def make_record(i, boxes=((0.1, 0.2, 0.5, 0.6),), space="pixel", width=640, height=480) -> Record:
    """A record with cats at `boxes` in [0, 1]; its image does not exist."""
    size = np.array([width, height] * 2)
    pixels = [np.floor(np.array(b) * size + 0.5).astype(int).tolist() for b in boxes]
    objects = [Object("cat", 7, list(b), bbox_2d=p) for b, p in zip(boxes, pixels, strict=True)]
    return Record([f"images/{i}.jpg"], width, height, space, objects, Metadata(i, width, height))


class Server:
    """Serves `content` by path. `script` holds, per path, functions that answer its next requests.

    Such a function gets the handler and the body; when the list is empty, the server answers normally.
    """

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.etag: dict[str, str] = {}
        self.script: dict[str, list[Callable[[BaseHTTPRequestHandler, bytes], None]]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.url = ""

    def ranges_of(self, path: str) -> list[str | None]:
        return [r for p, r in self.requests if p == path]


def answer(
    handler: BaseHTTPRequestHandler, body: bytes, *, send: int | None = None, ranges: bool = True, etag: str = ""
) -> None:
    """A normal answer to a request, cut off after `send` bytes of the body."""
    start, asked = 0, handler.headers.get("Range")
    condition = handler.headers.get("If-Range")
    if asked and ranges and (condition is None or condition == etag):
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.end_headers()
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    else:
        handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) - start))
    if etag:
        handler.send_header("ETag", etag)
    handler.end_headers()
    part = body[start:]
    handler.wfile.write(part if send is None else part[:send])
    handler.wfile.flush()


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free local port for the length of a `with` block."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Range")))
            if self.path not in state.content:
                self.send_error(404)
                return
            body = state.content[self.path]
            queue = state.script.get(self.path)
            if queue:
                queue.pop(0)(self, body)
            else:
                answer(self, body, ranges=state.ranges, etag=state.etag.get(self.path, ""))
            self.close_connection = True

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def convert_to(manifest: Path, out: Path, max_blocks: int = 64, **options) -> dict:
    convert(manifest, out / "train.jsonl", out / "images", ConvertOptions(**options), max_blocks, out / "stats.json")
    return json.loads((out / "stats.json").read_text())


def pixel_records(out: Path) -> list[Record]:
    return list(read_records(out / "train.jsonl", "pixel"))


def image_entry(i, **more):
    return {"id": i, "file_name": f"{i:04d}.jpg", "width": 160, "height": 120, **more}


def annotation_entry(i, image_id, bbox, **more):
    return {"id": i, "image_id": image_id, "category_id": 7, "bbox": bbox, "segmentation": rectangle(*bbox), **more}


def balanced(stats: dict) -> bool:
    return all(
        stats[kind]["listed"] == stats[kind]["written"] + sum(stats[kind]["dropped"].values())
        for kind in ("images", "objects")
    )
