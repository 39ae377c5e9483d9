"""Predictions for image files without records, in the format that `evaluate` and `export` read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from coordexp.inference.detector import Detector
from coordexp.inference.image_sources import ImageSource
from coordexp.inference.options import score_options
from coordexp.inference.predict import WITHOUT_EFFECT
from coordexp.inference.resumable_writer import ResumableWriter
from coordexp.modeling import checkpoint_files
from coordexp.modeling.checksums import verify_checksums
from coordexp.records import software_file
from coordexp.runtime.code_identity import code_identity, content_identity, file_identity
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, write_json, write_jsonl
from coordexp.runtime.progress import Progress
from coordexp.runtime.software import describe


def predict_images(
    detector: Detector,
    sources: Sequence[ImageSource],
    ids: Sequence[int | str],
    out: Path,
    categories: Sequence[str] | None = None,
    phrases: Sequence[str] | None = None,
) -> dict[str, float]:
    """Write one `records.Prediction` per image to `out`, in their order; returns counts and rates of this run.

    ids: image ids of the predictions. categories, phrases: as in `Detector.detect`. A call with the same arguments
    resumes after an interruption.
    """
    code = code_identity(__name__)
    identity = {
        "model": verify_checksums(detector.folder) or content_identity(checkpoint_files.files(detector.folder)),
        "images": [[source.name, file_identity(source.name)] for source in sources],
        "ids": list(ids),
        "options": {k: v for k, v in msgspec.to_builtins(detector.options).items() if k not in WITHOUT_EFFECT},
        "style": msgspec.to_builtins(detector.style),
        "budget": [detector.max_blocks, detector.min_blocks, detector.resize],
        "emit_norm": detector.emit_norm,
        "calibration": msgspec.to_builtins(detector.calibration),
        "categories": None if categories is None else list(categories),
        "phrases": None if phrases is None else list(phrases),
        "code": code,
    }
    writer = ResumableWriter(out, identity)
    progress = Progress("predict", len(sources), "images", counted=("objects", "tokens"))
    progress.resume_at(len(writer))
    batches = detector.predictions(sources, categories, phrases=phrases, ids=ids, done=writer)
    writer.add_batches(batches, progress)
    write_jsonl(out, writer.ordered(len(sources)))
    write_json(software_file(out), [describe(code) | {"score_options": score_options(detector.options)}])
    writer.remove()
    return progress.finish()


def annotated_ids(annotations: Path, sources: Sequence[ImageSource]) -> list[int | str]:
    """Ids of the images in a COCO or LVIS file, by file name; DataError for an image that is not in it.

    A name with folders in the file matches an image whose path ends in it, otherwise the file names are compared.
    """
    known: dict[str, int | str] = {}
    for image in read_json(annotations)["images"]:
        name = image.get("file_name") or "/".join(image.get("coco_url", "").split("/")[-2:])
        known |= {name: image["id"], Path(name).name: image["id"]}
    found = []
    for source in sources:
        parts = Path(source.name).parts
        names = ("/".join(parts[n:]) for n in range(len(parts)))
        image_id = next((known[name] for name in names if name in known), None)
        if image_id is None:
            fix = "pass only images of this file, or omit --gt"
            raise DataError(
                located("the image is not in the annotations", file=annotations, found=source.name, fix=fix)
            )
        found.append(image_id)
    return found
