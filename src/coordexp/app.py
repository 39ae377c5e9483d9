"""A local web page to try a checkpoint: upload an image, see the boxes, move the threshold, download COCO JSON.

Needs gradio (`pip install 'coordexp[app]'`). The server sends nothing to other machines: no share link, no usage
statistics, and no fonts or scripts from elsewhere.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from coordexp.datasets.folder_listing import IMAGE_SUFFIXES
from coordexp.inference.detector import Detector
from coordexp.inference.image_detections import Detections
from coordexp.runtime.errors import ConfigError, CoordExpError, located
from coordexp.runtime.software import library

MAX_UPLOAD = "100mb"
MAX_EXAMPLES = 6
DEFAULT_THRESHOLD = 0.3
SHOWN_SIDE = 640  # smaller images are enlarged to about this many pixels
COLUMNS = ["label", "score", "x1", "y1", "x2", "y2", "spread"]
WIDTHS = [126, 66, 72, 72, 72, 72, 108]  # pixels; without them, the last column is cut off
_FONTS = ("system-ui", "sans-serif")
_MONOSPACE = ("ui-monospace", "monospace")
_Outputs = tuple[Image.Image | None, list[list[Any]], str, str, Any]


def launch(
    detector: Detector,
    *,
    title: str,
    examples: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    block: bool = True,
) -> tuple[Any, str]:
    """Serve the app until Ctrl-C, or with `block=False` return; returns the app and its URL.

    port: default: the first free one from 7860 on. ConfigError if it is in use.
    """
    gradio = require_gradio()
    app = build(detector, title=title, examples=examples)
    theme = gradio.themes.Default(font=_FONTS, font_mono=_MONOSPACE)
    try:
        _, url, _ = app.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            theme=theme,
            footer_links=[],
            max_file_size=MAX_UPLOAD,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
        )
    except OSError as error:
        fix = "choose another --port, or omit it"
        raise ConfigError(located(f"cannot serve on {host}, port {port}: {error}", fix=fix)) from error
    if block:
        print(f"app: {url} (Ctrl-C to stop)", flush=True)
        app.block_thread()
    return app, url


def build(detector: Detector, *, title: str, examples: Sequence[Path] = ()) -> Any:
    """The `gradio.Blocks` of the app."""
    gradio = require_gradio()
    folder = Path(tempfile.mkdtemp(prefix="coordexp-app-"))
    note = " (this checkpoint was trained without them)" if detector.names_categories is False else ""

    def on_detect(path: str | None, names: str, threshold: float) -> tuple[Any, ...]:
        if not path:
            raise gradio.Error("Upload an image first.", print_exception=False)
        try:
            found, seconds = _timed(detector, path, _categories(names))
        except CoordExpError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        state = found, seconds
        return state, *on_threshold(state, threshold)

    def on_threshold(state: tuple[Detections, float] | None, threshold: float) -> tuple[Any, ...]:
        image, rows, summary, answer, file = _shown(state, threshold, folder)
        return image, rows, summary, answer, gradio.DownloadButton(value=file, interactive=file is not None)

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 86400)) as app:
        state = gradio.State(None)
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            with gradio.Column():
                image, names, threshold, button = _inputs(gradio, note, examples)
            with gradio.Column():
                outputs = _outputs(gradio)
        button.click(on_detect, [image, names, threshold], [state, *outputs], api_name=False)
        threshold.change(on_threshold, [state, threshold], outputs, show_progress="hidden", api_name=False)
    return app


def _inputs(gradio: Any, note: str, examples: Sequence[Path]) -> tuple[Any, ...]:
    """Image, categories, threshold and button, in the current column."""
    image = gradio.Image(
        type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image", elem_id="upload"
    )
    names = gradio.Textbox(
        label="Categories or phrases, separated by commas" + note,
        placeholder="every object",
        elem_id="categories",
    )
    threshold = gradio.Slider(0, 1, DEFAULT_THRESHOLD, step=0.01, label="Score threshold", elem_id="threshold")
    button = gradio.Button("Detect", variant="primary", elem_id="detect")
    if examples:
        gradio.Examples([[str(path)] for path in examples], [image], label="Examples")
    return image, names, threshold, button


def _outputs(gradio: Any) -> list[Any]:
    """Drawing, table, summary, raw answer and download, in the current column."""
    drawn = gradio.Image(
        label="Objects",
        show_label=False,  # it covers the upper left corner of the drawing
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],  # not `share`, which uploads the image
        elem_id="drawn",
    )
    summary = gradio.Markdown(elem_id="summary")
    table = gradio.Dataframe(
        headers=COLUMNS,
        interactive=False,
        buttons=["copy"],
        wrap=True,
        column_widths=WIDTHS,
        label="Boxes in pixels of the image; the spread is the standard deviation of each coordinate",
        elem_id="objects",
    )
    download = gradio.DownloadButton("Download COCO JSON", interactive=False, elem_id="download")
    with gradio.Accordion("Raw answer", open=False):
        answer = gradio.Textbox(show_label=False, lines=4, max_lines=20, elem_id="answer")
    return [drawn, table, summary, answer, download]


def example_images(model: Path, folder: Path | None = None) -> list[Path]:
    """Up to MAX_EXAMPLES images of `folder`, or by default of the validation images beside a run's checkpoint."""
    if folder is not None and not folder.is_dir():
        raise ConfigError(located("no such folder", file=folder, fix="pass a folder with images to --examples"))
    below = folder or model.resolve().parent / "data" / "images" / "val"
    found = (path for path in sorted(below.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path for path, _ in zip(found, range(MAX_EXAMPLES), strict=False)]


def _timed(detector: Detector, path: str, categories: list[str] | None) -> tuple[Detections, float]:
    """The detections in the image at `path`, named without its folder, and the seconds that they took."""
    started = time.perf_counter()
    [found] = detector.detect(path, categories)
    return replace(found, name=Path(path).name), time.perf_counter() - started


def _shown(state: tuple[Detections, float] | None, threshold: float, folder: Path) -> _Outputs:
    """Drawing, rows of the table, summary, raw answer and COCO file of what the threshold leaves."""
    if state is None:
        return None, [], "", "", None
    found, seconds = state
    kept = found.filter(threshold)
    rows = [
        [label, round(score, 3), *(round(value, 1) for value in box), " ".join(f"{value:.1f}" for value in spread)]
        for label, score, box, spread in zip(
            kept.labels, kept.scores.tolist(), kept.boxes.tolist(), kept.spreads, strict=True
        )
    ]
    hidden = f" ({len(found) - len(kept)} below the threshold)" if len(kept) < len(found) else ""
    noun = "object" if len(kept) == 1 else "objects"
    parts = [f"{len(kept)} {noun}{hidden} in {seconds:.2f} s", f"{found.width}x{found.height} pixels"]
    if found.truncated:
        parts.append("the answer was cut off at its maximum length")
    parts += [f"{count} {reason.replace('_', ' ')}" for reason, count in found.problems.items()]
    target = Path(tempfile.mkdtemp(dir=folder)) / f"{Path(found.name).stem}.coco.json"
    target.write_text(json.dumps(kept.to_coco(), indent=1), encoding="utf-8")
    scale = max(1, SHOWN_SIDE // max(found.width, found.height))
    return kept.draw(spread=True, scale=scale), rows, " · ".join(parts), found.answer, str(target)


def _categories(text: str) -> list[str] | None:
    names = [name.strip() for name in text.split(",")]
    return [name for name in names if name] or None


def shown_name(model: str) -> str:
    """Name of a checkpoint for the title: the run of `results/{run}/merged`, else the folder or repository."""
    path = Path(model)
    if not path.is_dir():
        return model
    path = path.resolve()
    return path.parent.name if path.name == "merged" else path.name


def require_gradio() -> Any:
    """The module gradio, without its usage statistics; ConfigError if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    return library("gradio", "pip install 'coordexp[app]'")
