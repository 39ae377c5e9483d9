"""The shipped configuration with changes, for the tests of `coordexp.config`."""

import copy
from pathlib import Path

import yaml

from coordexp.config.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
FULL_TINY = "config/train/full_tiny.yaml"


def load(change=None):
    config = copy.deepcopy(CONFIG)
    if change:
        change(config)
    return Settings.load(config, REPOSITORY)


def with_runs(**entries):
    return load(lambda c: c["runs"].update(entries))
