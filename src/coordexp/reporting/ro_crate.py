"""A run as an RO-Crate: `ro-crate-metadata.json`, which describes its files and how they were made.

It follows the Process Run Crate profile of the Workflow Run RO-Crate collection: one action per stage, with the files
that it read and wrote and the software that it used. https://www.researchobject.org/workflow-run-crate/
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from coordexp import __version__
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, sha256_file, write_json
from coordexp.runtime.local_paths import replace_paths, shown

NAME = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
LICENSE = "https://spdx.org/licenses/Apache-2.0"
HASHED_BYTES = 64 << 20  # larger files have checksums of their own (SHA256SUMS)


class Stage(NamedTuple):
    """One stage: its inputs and outputs, as globs of files below the folder of the run."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


STAGES = (
    Stage("training", ("data/train.coord.jsonl",), ("train/adapter/*", "train/log.jsonl")),
    Stage("merging", ("train/adapter/*",), ("merged/*",)),
    Stage("prediction", ("merged/*", "data/val.jsonl"), ("eval/predictions.jsonl",)),
    Stage("evaluation", ("eval/predictions.jsonl",), ("eval.json",)),
    Stage("report", ("eval.json", "eval/predictions.jsonl", "train/log.jsonl"), ("report.html",)),
)


def write_crate(run: str | Path) -> Path:
    """Write the metadata of a finished run into its folder; returns the file. DataError for another folder."""
    run = Path(run)
    if not (run / "eval.json").is_file():
        fix = "pass the folder of an evaluated run, for example results/shapes_9"
        raise DataError(located("not the folder of a run: it has no eval.json", file=run, fix=fix))
    result = read_json(run / "eval.json")
    files = {path.relative_to(run).as_posix(): path for stage in STAGES for path in _files(run, stage)}
    software = result.get("software") or {}
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"CoordExp run {run.resolve().name}",
        "description": f"Detection by a vision-language model, trained and evaluated on {result['dataset']} "
        f"({result['split']}): {result['counts']['images']} images.",
        "datePublished": _time(run / "eval.json"),
        "license": {"@id": LICENSE},
        "conformsTo": {"@id": PROFILE},
        "hasPart": [{"@id": name} for name in files],
        "mentions": [{"@id": f"#{stage.name}"} for stage in STAGES if _made(run, stage)],
    }
    graph = [
        {
            "@id": NAME,
            "@type": "CreativeWork",
            "about": {"@id": "./"},
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        },
        root,
        {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {
            "@id": LICENSE,
            "@type": "CreativeWork",
            "name": "Apache-2.0 (for the software; data and weights have their own licences)",
        },
        {"@id": "#coordexp", "@type": "SoftwareApplication", "name": "CoordExp", "version": __version__}
        | {"softwareRequirements": [{"@id": f"#{name}"} for name in software if name != "coordexp"]},
        *(
            {"@id": f"#{name}", "@type": "SoftwareApplication", "name": name, "version": str(version)}
            for name, version in software.items()
            if name != "coordexp"
        ),
        *(_file(name, path) for name, path in files.items()),
        *(_action(run, stage) for stage in STAGES if _made(run, stage)),
    ]
    write_json(run / NAME, replace_paths({"@context": CONTEXT, "@graph": graph}, shown))
    return run / NAME


def _files(run: Path, stage: Stage) -> Iterator[Path]:
    for pattern in (*stage.inputs, *stage.outputs):
        yield from (path for path in sorted(run.glob(pattern)) if path.is_file() and not path.name.startswith("."))


def _made(run: Path, stage: Stage) -> list[Path]:
    return list(_files(run, stage._replace(inputs=())))


def _file(name: str, path: Path) -> Mapping[str, Any]:
    size = path.stat().st_size
    kind = mimetypes.guess_type(name)[0] or ("application/jsonl" if path.suffix == ".jsonl" else None)
    entry = {"@id": name, "@type": "File", "name": path.name, "contentSize": str(size), "dateModified": _time(path)}
    return (
        entry
        | ({"encodingFormat": kind} if kind else {})
        | ({"sha256": sha256_file(path)} if size <= HASHED_BYTES else {})
    )


def _action(run: Path, stage: Stage) -> Mapping[str, Any]:
    def named(paths: Iterator[Path]) -> list[dict[str, str]]:
        return [{"@id": path.relative_to(run).as_posix()} for path in paths]

    made = _made(run, stage)
    return {
        "@id": f"#{stage.name}",
        "@type": "CreateAction",
        "name": stage.name,
        "instrument": {"@id": "#coordexp"},
        "object": named(_files(run, stage._replace(outputs=()))),
        "result": named(iter(made)),
        "endTime": max(_time(path) for path in made),
    }


def _time(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
