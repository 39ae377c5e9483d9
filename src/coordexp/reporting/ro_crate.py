"""A run as an RO-Crate: `ro-crate-metadata.json`, which describes its files and how they were made.

It follows the Workflow Run Crate profile: the Snakefile is the main workflow, one action is its execution, and one
action per stage has the files that the stage read and wrote. https://www.researchobject.org/workflow-run-crate/
"""

from __future__ import annotations

import mimetypes
import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from coordexp import __version__
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import atomic_dir, read_json, sha256_file, write_json
from coordexp.runtime.local_paths import replace_paths, shown

NAME = "ro-crate-metadata.json"
RO_CRATE = "https://w3id.org/ro/crate/1.1"
WORKFLOW_RO_CRATE = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    WORKFLOW_RO_CRATE: ("Workflow RO-Crate", "1.0"),
}
CONTEXT = [f"{RO_CRATE}/context", "https://w3id.org/ro/terms/workflow-run/context"]
LICENSE = "https://spdx.org/licenses/Apache-2.0"
SNAKEMAKE = "https://w3id.org/workflowhub/workflow-ro-crate#snakemake"
WORKFLOW, MAIN = "workflow", "workflow/Snakefile"  # copies of the rules, in the folder of the run
RULES = ("Snakefile", "rules/*.smk")
KINDS = {".jsonl": "application/jsonl", ".safetensors": "application/octet-stream"}  # beyond `mimetypes`
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


def write_crate(run: str | Path, workflow: str | Path | None = None) -> Path:
    """Write the metadata of a finished run, and a copy of the rules, into its folder; returns the file of the metadata.

    workflow: the folder with the Snakefile of the run; default: the one whose `results` contains the run. DataError if
    `run` is not the folder of a run, or there is no Snakefile.
    """
    run = Path(run)
    if not (run / "eval.json").is_file():
        fix = "pass the folder of an evaluated run, for example results/shapes_9"
        raise DataError(located("not the folder of a run: it has no eval.json", file=run, fix=fix))
    _copy_rules(run, run.resolve().parent.parent if workflow is None else Path(workflow))
    result = read_json(run / "eval.json")
    files = {path.relative_to(run).as_posix(): path for stage in STAGES for path in _files(run, stage)}
    rules = {path.relative_to(run).as_posix(): path for pattern in RULES for path in _glob(run / WORKFLOW, pattern)}
    software = {name: str(version) for name, version in (result.get("software") or {}).items()}
    graph = [
        {
            "@id": NAME,
            "@type": "CreativeWork",
            "about": {"@id": "./"},
            "conformsTo": [{"@id": RO_CRATE}, {"@id": WORKFLOW_RO_CRATE}],
        },
        _root(run, result, [*files, *rules]),
        *(
            {"@id": profile, "@type": "CreativeWork", "name": name, "version": version}
            for profile, (name, version) in PROFILES.items()
        ),
        {
            "@id": LICENSE,
            "@type": "CreativeWork",
            "name": "Apache-2.0 (for the software; data and weights have their own licences)",
        },
        *_software(software),
        *(_file(name, path) for name, path in files.items()),
        *(_file(name, path) for name, path in rules.items() if name != MAIN),
        _main_workflow(run, software),
        _execution(run),
        *(_action(run, stage) for stage in STAGES if _made(run, stage)),
    ]
    write_json(run / NAME, replace_paths({"@context": CONTEXT, "@graph": graph}, shown))
    return run / NAME


def _copy_rules(run: Path, workflow: Path) -> None:
    if not (workflow / "Snakefile").is_file():
        fix = "pass the folder of the workflow with --workflow"
        raise DataError(located("the folder of the workflow has no Snakefile", file=workflow, fix=fix))
    with atomic_dir(run / WORKFLOW) as folder:
        for pattern in RULES:
            for file in _glob(workflow, pattern):
                target = folder / file.relative_to(workflow)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def _root(run: Path, result: Mapping[str, Any], parts: list[str]) -> Mapping[str, Any]:
    return {
        "@id": "./",
        "@type": "Dataset",
        "name": f"CoordExp run {run.resolve().name}",
        "description": f"Detection by a vision-language model, trained and evaluated on {result['dataset']} "
        f"({result['split']}): {result['counts']['images']} images.",
        "datePublished": _time(run / "eval.json"),
        "license": {"@id": LICENSE},
        "conformsTo": [{"@id": profile} for profile in PROFILES],
        "mainEntity": {"@id": MAIN},
        "hasPart": [{"@id": name} for name in parts],
        "mentions": [{"@id": "#run"}, *({"@id": f"#{stage.name}"} for stage in STAGES if _made(run, stage))],
    }


def _software(versions: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """CoordExp and the packages that the evaluation recorded, and the language of the workflow."""
    required = [name for name in versions if name != "coordexp"]
    coordexp = {"@id": "#coordexp", "@type": "SoftwareApplication", "name": "CoordExp", "version": __version__}
    language = {"@id": SNAKEMAKE, "@type": "ComputerLanguage", "name": "Snakemake"}
    return [
        coordexp | {"softwareRequirements": [{"@id": f"#{name}"} for name in required]},
        *(
            {"@id": f"#{name}", "@type": "SoftwareApplication", "name": name, "version": versions[name]}
            for name in required
        ),
        language | {"identifier": "https://snakemake.github.io", "url": "https://snakemake.github.io"},
    ]


def _main_workflow(run: Path, versions: Mapping[str, str]) -> Mapping[str, Any]:
    return {
        **_file(MAIN, run / MAIN),
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
        "name": "CoordExp workflow",
        "description": "The rules at the time when the crate was written.",
        "version": versions.get("coordexp", __version__),
        "license": {"@id": LICENSE},
        "programmingLanguage": {"@id": SNAKEMAKE},
        "hasPart": {"@id": "#coordexp"},
    }


def _execution(run: Path) -> Mapping[str, Any]:
    """The execution of the whole workflow: from the records to the last output."""
    made = [path for stage in STAGES for path in _made(run, stage)]
    read = [path for stage in STAGES for path in _files(run, stage) if path not in made]
    return {
        "@id": "#run",
        "@type": "CreateAction",
        "name": f"Execution of the workflow for {run.resolve().name}",
        "description": "From the records of the dataset to the outputs of all stages.",
        "instrument": {"@id": MAIN},
        "object": _references(run, read),
        "result": _references(run, made),
        "endTime": max(_time(path) for path in made),
        "actionStatus": "http://schema.org/CompletedActionStatus",
    }


def _files(run: Path, stage: Stage) -> Iterator[Path]:
    for pattern in (*stage.inputs, *stage.outputs):
        yield from _glob(run, pattern)


def _glob(folder: Path, pattern: str) -> Iterator[Path]:
    """The files that match, without hidden ones."""
    return (path for path in sorted(folder.glob(pattern)) if path.is_file() and not path.name.startswith("."))


def _references(run: Path, paths: Iterable[Path]) -> list[dict[str, str]] | dict[str, str]:
    """References to the files; a single one is not a list, as RO-Crate recommends."""
    found = [{"@id": name} for name in dict.fromkeys(path.relative_to(run).as_posix() for path in paths)]
    return found[0] if len(found) == 1 else found


def _made(run: Path, stage: Stage) -> list[Path]:
    return list(_files(run, stage._replace(inputs=())))


def _file(name: str, path: Path) -> Mapping[str, Any]:
    size = path.stat().st_size
    entry = {"@id": name, "@type": "File", "name": path.name, "contentSize": str(size), "dateModified": _time(path)}
    entry["encodingFormat"] = KINDS.get(path.suffix) or mimetypes.guess_type(name)[0] or "text/plain"
    return entry | ({"sha256": sha256_file(path)} if size <= HASHED_BYTES else {})


def _action(run: Path, stage: Stage) -> Mapping[str, Any]:
    made = _made(run, stage)
    return {
        "@id": f"#{stage.name}",
        "@type": "CreateAction",
        "name": stage.name,
        "description": f"The stage {stage.name} of the workflow.",
        "instrument": {"@id": "#coordexp"},
        "object": _references(run, _files(run, stage._replace(outputs=()))),
        "result": _references(run, made),
        "endTime": max(_time(path) for path in made),
    }


def _time(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
