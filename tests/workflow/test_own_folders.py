"""The user's own folders of a dataset and a base: what a changed file in them reruns, in real dry runs."""

import functools
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from running import REPOSITORY, SMALL, Workflow

from coordexp.datasets.download import provide
from coordexp.modeling import tiny
from coordexp.runtime.config_io import merge

TARGETS = ("results/own_9/data/train_tiny.jsonl", "results/models/ours-coordexp/config.json")
DATA = dict.fromkeys(("download", "convert_resize", "coord_tokenize", "tiny_split"), 1)
BASE = dict.fromkeys(("fetch_model", "expand_vocab"), 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset and a base next to the folder of a workflow that has read them."""
    top = tmp_path_factory.mktemp("own")
    source = provide("shapes", SMALL["datasets"]["shapes"], "train", top / "parts", top / "parts" / "train.source.json")
    tiny.build(top / "base", seed=7)
    entry = {"format": "lvis", "root": str(top / "parts"), "annotations": {"train": source.annotations}}
    changes = {
        "datasets": {"own": {**entry, "image_dirs": {"train": source.image_dirs}}},
        "models": {"ours": {"source": "path", "path": str(top / "base")}},
        "runs": {"own": {"model": "ours", "recipe": "config/train/full_tiny.yaml"}},
    }
    (top / "work").mkdir()
    workflow = Workflow(top / "work", merge(SMALL, changes))
    workflow.run(*TARGETS)
    assert workflow.planned(*TARGETS) == {}
    return workflow, top / "parts" / source.annotations, top / "base"


def published(workflow):
    """Names and contents of the files of a run that others may get; logs and benchmarks stay on the machine."""
    for path in sorted(workflow.path("results").rglob("*")):
        if path.is_file() and not {"logs", "benchmarks"} & set(path.parts):
            yield path.name, path.read_bytes()


def test_results_name_no_folders_of_the_user(made):
    workflow, annotations, base = made
    private = [bytes(path) for path in (annotations.parent, base, workflow.folder, REPOSITORY, Path.home())]
    leaks = {(name, path) for name, content in published(workflow) for path in private if path in content}
    assert not leaks


def test_a_secret_in_a_url_is_stored_nowhere(made, tmp_path):
    """Neither with the data nor in Snakemake's records or on the terminal; the server does get it."""
    _, annotations, _ = made
    (tmp_path / "work").mkdir()
    asked = []

    class Server(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    serve = functools.partial(Server, directory=annotations.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{annotations.name}?token=PLANTED"
        entry = {"format": "lvis", "annotations": {"train": annotations.name}, "image_dirs": {"train": []}}
        entry["downloads"] = {annotations.name: {"url": url}}
        other = Workflow(tmp_path / "work", merge(SMALL, {"datasets": {"web": entry}}))
        done = other.run("resources/web/train.source.json")
        server.shutdown()
    assert any("token=PLANTED" in path for path in asked)
    assert "PLANTED" not in done.stdout + done.stderr
    files = [path for path in other.folder.rglob("*") if path.is_file() and path.name != "changes.yaml"]
    assert len(files) > 3 and not [path for path in files if b"PLANTED" in path.read_bytes()]


def replace(path, text):
    """Replace `path` by another file with an old modification time; hard links to it keep the old content."""
    path.with_suffix(".new").write_text(text)
    os.utime(path.with_suffix(".new"), (1.7e9, 1.7e9))
    path.with_suffix(".new").replace(path)


def test_a_touch_reruns_nothing(made):
    workflow, annotations, base = made
    for path in (annotations, *base.iterdir()):
        path.touch()
    assert workflow.planned(*TARGETS) == {}


def test_own_annotations_rerun_their_data_set_alone(made):
    workflow, annotations, _ = made
    before = annotations.read_text()
    content = json.loads(before)
    content["annotations"].pop()
    try:
        for change in (annotations.write_text, lambda text: replace(annotations, text)):
            change(json.dumps(content))
            assert workflow.planned(*TARGETS) == DATA
            annotations.write_text(before)
            assert workflow.planned(*TARGETS) == {}
    finally:
        annotations.write_text(before)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_file_of_an_own_base_reruns_it_alone(made, name):
    workflow, _, base = made
    kept = shutil.copy(base / name, base.parent / name)
    try:
        data = (base / name).read_bytes()
        (base / name).unlink()
        (base / name).write_bytes(data[:-2] + (b"\0\1" if name.endswith("tensors") else b"\n\n}\n"))
        assert workflow.planned(*TARGETS) == BASE
    finally:
        shutil.move(kept, base / name)
    assert workflow.planned(*TARGETS) == {}


def test_missing_folders_rerun_nothing(made):
    """Results do not need them any more: on an unmounted disk, or on another machine."""
    workflow, annotations, base = made
    away = [path.rename(path.with_name(f"{path.name}-away")) for path in (annotations.parent, base)]
    try:
        assert workflow.planned(*TARGETS) == {}
    finally:
        for path in away:
            path.rename(path.with_name(path.name.removesuffix("-away")))


def test_the_plan_gives_the_hashes(made):
    """In the reason that Snakemake prints for the rerun."""
    workflow, annotations, _ = made
    before = annotations.read_text()
    annotations.write_text(before + "\n")
    try:
        assert '{"annotations":"' in workflow.run("--dry-run", "--", *TARGETS).stdout
    finally:
        annotations.write_text(before)


def test_nothing_is_left_to_do_after_a_changed_source_was_read(made):
    """The manifests record what was read."""
    workflow, annotations, base = made
    annotations.write_text(annotations.read_text() + "\n")
    (base / "tokenizer_config.json").write_text((base / "tokenizer_config.json").read_text() + "\n")
    workflow.run(*TARGETS)
    assert workflow.planned(*TARGETS) == {}
