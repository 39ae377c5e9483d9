"""The catalogue of public datasets: every entry is valid, has a run, and says where its files are."""

import re
from pathlib import Path

import pytest
import yaml

from coordexp.config.settings import Settings, over_defaults
from coordexp.datasets.formats import FORMATS, known_splits, open_format

REPOSITORY = Path(__file__).resolve().parents[3]
FILE = REPOSITORY / "config/datasets/public.yaml"
CATALOGUE = yaml.safe_load(FILE.read_text())
COMMENTS = dict(re.findall(r"((?:^  #[^\n]*\n)+)  (\w+):", FILE.read_text(), flags=re.MULTILINE))


@pytest.fixture(scope="module")
def settings():
    missing = {entry["format"] for entry in CATALOGUE["datasets"].values()} - set(FORMATS.names())
    assert not missing
    return Settings.load(over_defaults(CATALOGUE, REPOSITORY), REPOSITORY)


@pytest.mark.parametrize("name", CATALOGUE["datasets"])
def test_every_dataset_has_a_run_and_its_splits(settings, name):
    run = settings.run(f"{name}_768")
    splits = known_splits(open_format(name, CATALOGUE["datasets"][name]))
    assert {"train", "val"} <= set(splits)
    for split in splits:
        assert settings.source(name, split)
    assert settings.recipe(run.name)


def test_every_comment_says_protocol_and_where_the_files_are():
    assert len(COMMENTS) >= 7
    for comment, name in COMMENTS.items():
        assert "Protocol: " in comment, name
        assert CATALOGUE["datasets"][name].get("downloads") or "http" in comment, name


def test_every_url_is_one_of_a_publisher():
    """So that a typing error in the host of a URL is noticed."""
    hosts = set(re.findall(r"https?://([^/\s),]+)", FILE.read_text()))
    assert hosts == {
        "bvisionweb1.cs.unc.edu",
        "dl.fbaipublicfiles.com",
        "dorc.ks3-cn-beijing.ksyun.com",
        "github.com",
        "huggingface.co",
        "images.cocodataset.org",
        "storage.googleapis.com",
        "universe.roboflow.com",
        "web.archive.org",
        "www.crowdhuman.org",
        "www.objects365.org",
    }
