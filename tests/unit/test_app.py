"""The demo app in a real browser: upload, detect, move the threshold, download; and nothing leaves the machine."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

import pytest
from browser import BROWSER, Browser
from inference_helpers import images
from PIL import Image

from coordexp import app
from coordexp.cli import main
from coordexp.inference.detector import Detector
from coordexp.runtime.errors import ConfigError


@pytest.fixture(scope="module")
def detector(taught):
    return Detector(taught, max_blocks=15)


@pytest.fixture
def outgoing(monkeypatch):
    """Addresses of other machines that this process connects to."""
    found = []
    connect = socket.socket.connect

    def watched(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            found.append(address)
            raise OSError("no network in this test")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    return found


@pytest.fixture
def page(detector, tmp_path, outgoing):
    """A browser that shows the app, with two example images."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'coordexp[app]'")
    if BROWSER is None:
        pytest.skip("no browser found")
    (tmp_path / "examples").mkdir()
    for n, image in enumerate(images(2)):
        image.save(tmp_path / "examples" / f"example-{n}.png")
    examples = app.example_images(detector.folder, tmp_path / "examples")
    served, url = app.launch(detector, title="CoordExp: taught", examples=examples, block=False)
    try:
        with Browser(tmp_path / "profile") as browser:
            browser.open(url)
            browser.wait_for("document.querySelector('#detect')")
            yield browser
            assert not browser.errors()
            requested = [address for address in browser.requested() if not address.startswith(("data:", "blob:"))]
            assert requested and all(address.startswith(url) for address in requested)
    finally:
        served.close()
    assert not outgoing


def upload_and_detect(page: Browser, file: Path) -> None:
    page.set_files("#upload input[type=file]", [file])
    page.wait_for("document.querySelector('#upload img')")
    page.evaluate("document.querySelector('#detect').click()")
    page.wait_for(
        "document.querySelector('#drawn img') && document.querySelector('#summary').innerText.includes(' s ')"
    )


def rows(page: Browser, count: int) -> list[list[str]]:
    """Cells of the table of objects, once it has `count` rows."""
    script = "[...document.querySelectorAll('#objects [role=gridcell]')].map(cell => cell.innerText.trim())"
    page.wait_for(f"{script}.length == {count * len(app.COLUMNS)}")
    cells = iter(page.evaluate(script))
    return [list(row) for row in zip(*[cells] * len(app.COLUMNS), strict=True)]


@pytest.mark.slow
def test_upload_detect_move_the_threshold_and_download(page, detector, tmp_path):
    image = images()[1].resize((256, 128))
    image.save(tmp_path / "mine.png")
    [expected] = detector.detect(tmp_path / "mine.png")
    upload_and_detect(page, tmp_path / "mine.png")
    shown = rows(page, len(expected))
    assert [row[0] for row in shown] == expected.labels and len(shown) > 1
    assert [float(value) for value in shown[0][2:6]] == pytest.approx(expected.boxes[0].tolist(), abs=0.06)
    assert "256x128 pixels" in page.evaluate("document.querySelector('#summary').innerText")
    page.evaluate("document.querySelector('button.label-wrap').click()")  # the accordion
    page.wait_for("document.querySelector('#answer textarea')?.value.startsWith('{\"objects\"')")

    threshold = round((sorted(expected.scores)[0] + sorted(expected.scores)[1]) / 2, 4)
    page.type_into("#threshold input[type=number]", str(threshold))
    page.evaluate("document.querySelector('#threshold input[type=number]').blur()")
    page.wait_for("document.querySelector('#summary').innerText.includes('below the threshold')")
    kept = expected.filter(threshold)
    assert [row[0] for row in rows(page, len(kept))] == kept.labels and len(kept) == len(expected) - 1

    (tmp_path / "downloads").mkdir()
    page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    page.evaluate("document.querySelector('#download').click()")
    file = downloaded(tmp_path / "downloads")
    data = json.loads(file.read_text())
    assert file.name == "mine.coco.json"
    assert data["images"] == [{"id": 1, "file_name": "mine.png", "width": 256, "height": 128}]
    x1, y1, x2, y2 = kept.boxes[0]
    assert data["annotations"][0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01)
    assert len(data["annotations"]) == len(kept)
    page.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as seen:
        assert len(seen.convert("RGB").getcolors(1 << 24)) > 200


@pytest.mark.slow
def test_the_whole_table_and_drawing_are_visible(page, detector, tmp_path):
    image = images()[1].resize((2560, 1280))  # coordinates of four digits
    image.save(tmp_path / "large.png")
    [expected] = detector.detect(tmp_path / "large.png")
    upload_and_detect(page, tmp_path / "large.png")
    rows(page, len(expected))
    right = "document.querySelector('#objects').getBoundingClientRect().right"
    hidden = f"cell.getBoundingClientRect().right > {right} + 1 || cell.scrollWidth > cell.clientWidth + 1"
    cells = "[...document.querySelectorAll('#objects [role=gridcell]')]"
    assert page.evaluate(f"{cells}.filter(cell => {hidden}).map(cell => cell.innerText)") == []
    assert not page.evaluate("!!document.querySelector('#drawn label, #drawn [data-testid=block-label]')?.offsetWidth")


@pytest.mark.slow
def test_phrases_examples_and_errors(page, tmp_path, monkeypatch):
    asked = []
    detect = Detector.detect
    monkeypatch.setattr(
        Detector,
        "detect",
        lambda self, image, names: asked.append((Path(image).name, names)) or detect(self, image, names),
    )
    page.evaluate("document.querySelector('#detect').click()")
    page.wait_for("document.body.innerText.includes('Upload an image first')")
    page.wait_for("document.querySelectorAll('.gallery img, .gallery-item img').length >= 2")
    page.evaluate("document.querySelector('.gallery-item').click()")
    page.wait_for("document.querySelector('#upload img')")
    page.type_into("#categories textarea, #categories input", "black cat, <|im_end|>")
    page.evaluate("document.querySelector('#detect').click()")
    page.wait_for("document.body.innerText.includes('invalid categories')")
    page.type_into("#categories textarea, #categories input", "black cat, dog")
    page.evaluate("document.querySelector('#detect').click()")
    page.wait_for("document.querySelector('#drawn img')")
    assert asked[-1] == ("example-0.png", ["black cat", "dog"])


def downloaded(folder: Path) -> Path:
    """The file that the browser saves in a folder."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [file for file in folder.iterdir() if file.suffix != ".crdownload"]
        if found:
            return found[0]
        time.sleep(0.1)
    raise TimeoutError("no download")


def test_the_app_is_served_to_this_machine_only_by_default(capsys, monkeypatch, taught):
    served = []
    monkeypatch.setattr(app, "require_gradio", lambda: None)
    monkeypatch.setattr(app, "launch", lambda detector, **options: served.append(options))
    assert main(["app", str(taught)]) == 0
    assert served[0]["host"] == "127.0.0.1" and served[0]["title"] == "CoordExp: taught"


def test_a_port_in_use_is_an_error(detector):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'coordexp[app]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot serve on"):
            app.launch(detector, title="x", port=taken.getsockname()[1], block=False)


def test_without_gradio_the_command_says_what_to_install(capsys, monkeypatch, taught):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", str(taught)]) == 2
    assert "pip install 'coordexp[app]'" in capsys.readouterr().err


def test_examples_are_validation_images_of_the_run(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "data" / "images" / split / "part").mkdir(parents=True)
        for n in range(8):
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / "images" / split / "part" / f"{n}.png")
    (tmp_path / "merged").mkdir()
    found = app.example_images(tmp_path / "merged")
    assert [path.relative_to(tmp_path / "data/images").as_posix() for path in found] == [
        f"val/part/{n}.png" for n in range(6)
    ]
    assert app.shown_name(str(tmp_path / "merged")) == tmp_path.name
    with pytest.raises(ConfigError, match="no such folder"):
        app.example_images(tmp_path, tmp_path / "none")
