"""`coordexp init`: describes a folder, and writes a configuration that the workflow accepts."""

import json
from pathlib import Path

import pytest
import yaml
from dataset_cases import write_dataset

from coordexp.cli import main
from coordexp.config.settings import Settings, over_defaults

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A COCO dataset without val, and another folder to work in."""
    write_dataset(tmp_path / "my parts", format="coco")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "my parts"


def test_the_written_file_is_a_configuration_with_a_derived_val(folder, capsys):
    assert main(["init", str(folder)]) == 0
    out = capsys.readouterr().out
    for text in ("coco (annotations.json)", "train       6", "baseball_bat", "wrote my_parts.yaml"):
        assert text in out
    written = Path("my_parts.yaml").read_text()
    settings = Settings.load(over_defaults(yaml.safe_load(written), REPOSITORY), REPOSITORY)
    assert settings.datasets["my_parts"]["root"] == str(folder)
    assert settings.datasets["my_parts"]["derived_splits"]["val"]["source"] == "train"
    assert settings.run("my_parts_256").predict.restrict_labels
    assert "snakemake results/my_parts_256/report.html --configfile my_parts.yaml" in out


def test_a_dry_run_prints_what_would_be_written(folder, capsys):
    main(["init", str(folder), "--name", "parts"])
    capsys.readouterr()
    before = sorted(path.name for path in Path().iterdir())
    assert main(["init", str(folder), "--name", "parts", "--dry-run"]) == 0
    written = Path("parts.yaml").read_text().split("\n", 1)[1]
    assert written in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == before


def test_a_file_is_never_overwritten(folder, capsys):
    Path("my_parts.yaml").write_text("mine")
    assert main(["init", str(folder)]) == 2
    assert Path("my_parts.yaml").read_text() == "mine"
    assert "the file already exists" in capsys.readouterr().err


def test_an_ambiguous_folder_is_listed_and_nothing_is_guessed(folder, capsys):
    content = json.loads((folder / "annotations.json").read_text())
    (folder / "more_train.json").write_text(json.dumps({**content, "annotations": content["annotations"][:1]}))
    assert main(["init", str(folder), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "in 2 ways" in error and "--choice 1: coco, annotations.json" in error
    assert main(["init", str(folder), "--dry-run", "--choice", "2"]) == 0
    assert "more_train.json" in capsys.readouterr().out
    assert main(["init", str(folder), "--choice", "3"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "not a folder"),
        (["."], "the folder is empty"),
        ([".", "--name", "a/b"], "invalid name"),
        ([".", "--format", "cocoo"], "unknown dataset format 'cocoo'"),
    ],
)
def test_mistakes_are_named(folder, capsys, arguments, message):
    assert main(["init", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_annotations_lists_the_formats(folder, capsys):
    assert main(["init", str(folder / "images")]) == 2
    assert "no annotations in a supported format" in capsys.readouterr().err


def test_a_dataset_that_cannot_be_read_is_described_but_not_configured(folder, capsys):
    path = folder / "annotations.json"
    path.write_text(path.read_text()[:-1] + "} x")
    assert main(["init", str(folder)]) == 2
    assert not Path("my_parts.yaml").exists()


BCCD = REPOSITORY.parent / "shared/bccd"


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs the BCCD dataset")
def test_the_tutorial_shows_what_init_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("BCCD").symlink_to(BCCD)
    page = (REPOSITORY / "docs/tutorial_bccd.md").read_text()
    commands = [line.split() for line in page.splitlines() if line.startswith("coordexp init")]
    assert [main(words[1:]) for words in commands] == [2, 0, 0]  # the first one lists the choices
    written, shown = (
        yaml.safe_load(Path("my.yaml").read_text()),
        yaml.safe_load(page.split("```yaml\n")[1].split("```")[0]),
    )
    assert written["datasets"]["cells"].pop("root") == str(BCCD.resolve())
    assert shown["datasets"]["cells"].pop("root") == "BCCD"
    assert written == shown
