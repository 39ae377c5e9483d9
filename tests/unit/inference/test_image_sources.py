"""Images from paths, folders, URLs, PIL and arrays."""

from __future__ import annotations

import http.server
import threading

import numpy as np
import pytest
from PIL import Image

from coordexp.inference import image_sources as module
from coordexp.inference.image_sources import image_sources
from coordexp.runtime.errors import ConfigError, DataError, DownloadError


@pytest.fixture
def site(tmp_path):
    """URL of a web server whose files lie in the temporary folder."""
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    make = lambda *args: handler(*args, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), make) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def turned(path) -> None:
    image = Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def test_a_url_is_downloaded_only_on_request(site, tmp_path):
    turned(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"allow_urls=True"):
        image_sources(f"{site}/a.png")
    [source] = image_sources(f"{site}/a.png?key=secret", allow_urls=True)
    [local] = image_sources(tmp_path / "a.png")
    assert source.size == local.size == (20, 30)
    assert source.name == f"{site}/a.png?key=..."
    for size in ((20, 30), (64, 96)):
        assert (np.asarray(source.load(size)) == np.asarray(local.load(size))).all()


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("none.png", None, "404"),
        ("page.png", b"<html>", "cannot read the image"),
        ("big.png", b"0" * 2000, "too large"),
    ],
)
def test_a_url_without_a_usable_image_is_an_error(site, tmp_path, monkeypatch, name, content, error):
    monkeypatch.setattr(module, "MAX_URL_BYTES", 1000)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((DataError, DownloadError), match=error):
        image_sources(f"{site}/{name}", allow_urls=True)


def test_a_folder_gives_its_images_by_name(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "inner").mkdir()
    assert [source.name for source in image_sources(tmp_path)] == [str(tmp_path / n) for n in ("a.png", "b.JPG")]
    with pytest.raises(DataError, match="no images in the folder"):
        image_sources(tmp_path / "inner")
    with pytest.raises(DataError, match="no image given"):
        image_sources([])


@pytest.mark.parametrize("mode", ["L", "RGBA", "RGB"])
def test_arrays_and_pil_images_become_rgb(mode):
    array = np.asarray(Image.linear_gradient("L").convert(mode))
    for source in image_sources([array, Image.fromarray(array)]):
        assert source.size == (256, 256) and source.load((256, 256)).mode == "RGB"


@pytest.mark.parametrize(
    "given", [np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8), 7]
)
def test_anything_else_is_an_error_that_names_the_input(given):
    with pytest.raises(DataError, match=r"image 2: not an image; expected .*uint8"):
        image_sources([Image.new("RGB", (8, 8)), given])


def test_a_damaged_file_is_an_error_whether_pillow_opened_it_or_not(tmp_path):
    Image.effect_noise((200, 200), 90).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:9_000])
    [source] = image_sources(tmp_path / "cut.jpg")
    with pytest.raises(DataError, match=r"cut\.jpg: cannot read the image"):
        source.load((64, 64))
    with pytest.raises(DataError, match="image 1: cannot read the image"):
        image_sources(Image.open(tmp_path / "cut.jpg"))
    with pytest.raises(DataError, match=r"no\.png"):
        image_sources(tmp_path / "no.png")
