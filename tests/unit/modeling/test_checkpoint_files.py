"""Copies of a checkpoint share only weights with it, and never contain what a symbolic link leads to elsewhere."""

import modeling_helpers as helpers
import pytest

from coordexp.modeling import base_model, merge, tiny, vocab
from coordexp.modeling.checkpoint_files import files, own_files
from coordexp.runtime.errors import ModelError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`base`, `expanded` and `adapter`."""
    root = tmp_path_factory.mktemp("folders")
    tiny.build(root / "base", 3, **helpers.SMALL)
    helpers.reshard(root / "base", "200KB")
    vocab.expand(root / "base", root / "expanded")
    helpers.adapted(root / "expanded", offset=False, target_modules=r".*k_proj").save_pretrained(root / "adapter")
    return root


def copy(kind, folders, out):
    """Run one of the stages that copy a checkpoint; returns its source."""
    source = folders / ("expanded" if kind in ("merge", "already expanded") else "base")
    if kind == "fetch":
        base_model.fetch("m", {"source": "path", "path": str(source)}, out)
    elif kind == "merge":
        merge.merge(source, folders / "adapter", out)
    else:
        vocab.expand(source, out)
    return source


KINDS = ["fetch", "expand", "already expanded", "merge"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_weights_are_shared_with_the_source(folders, tmp_path, kind):
    source = copy(kind, folders, tmp_path / "out")
    inodes = {file.stat().st_ino: file.name for file in source.iterdir()}
    shared = [inodes[file.stat().st_ino] for file in (tmp_path / "out").iterdir() if file.stat().st_ino in inodes]
    assert shared and all(name.endswith(".safetensors") for name in shared)


@pytest.mark.parametrize("kind", KINDS)
def test_licence_and_notices_stay_with_the_weights(folders, tmp_path, kind):
    texts = [folders / folder / name for folder in ("base", "expanded") for name in ("LICENSE", "NOTICE.md")]
    for text in texts:
        text.write_text("permitted\n")
    try:
        copy(kind, folders, tmp_path / "out")
    finally:
        for text in texts:
            text.unlink()
    assert {(tmp_path / "out" / text.name).read_text() for text in texts} == {"permitted\n"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_that_leads_out_of_the_folder_is_skipped_and_reported(folders, tmp_path, capsys, kind):
    (tmp_path / "secret").write_text("secret")
    links = [folders / name / "extra.txt" for name in ("base", "expanded")]
    for link in links:
        link.symlink_to(tmp_path / "secret")
    try:
        copy(kind, folders, tmp_path / "out")
    finally:
        for link in links:
            link.unlink()
    assert not (tmp_path / "out" / "extra.txt").exists()
    assert "extra.txt: a symbolic link that leads out of the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json", "chat_template.jinja"])
def test_a_file_that_is_read_must_not_be_such_a_link(tmp_path, name):
    (tmp_path / "elsewhere").write_text("{}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=f"{name}: a symbolic link that leads out"):
        own_files(tmp_path / "model", "expand")


def test_links_within_the_folder_and_into_the_cache_of_a_hub_are_followed(tmp_path):
    blob = tmp_path / "models--owner--name" / "blobs" / "0123"
    blob.parent.mkdir(parents=True)
    blob.write_text("{}")
    folder = blob.parents[1] / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "config.json").symlink_to("../../blobs/0123")
    (folder / "a.txt").symlink_to("config.json")
    (folder / "b.txt").symlink_to("absent")
    assert [file.name for file in files(folder)] == ["a.txt", "config.json"]
