"""Names of datasets, models, runs and sweeps: parts of paths, and keys of YAML files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from coordexp.runtime.errors import ConfigError, located

PATTERNS = {
    "datasets": (r"[A-Za-z0-9_-]+", "letters, digits, _ and -"),
    "models": (r"[A-Za-z0-9._-]+", "letters, digits, ., _ and -"),
    "runs": (r"(?s).*", ""),  # config.runs checks them
    "sweeps": (r"[A-Za-z0-9_-]+", "letters, digits, _ and -"),
}


def check_names(config: Mapping[str, Any]) -> None:
    """ConfigError that lists names which cannot be part of a path, or which YAML does not read as text."""
    problems = []
    for section, (pattern, expected) in PATTERNS.items():
        entries = config.get(section)
        for name in entries if isinstance(entries, Mapping) else ():
            if not isinstance(name, str) or _other_than_text(name):
                problem = "invalid name: YAML and Snakemake read it as a number, a date or a Boolean, not as text"
                fix = f"choose another name, for example {section.removesuffix('s')}_{str(name).lower()}"
                problems.append(located(problem, field=section, found=name, fix=fix))
            elif not re.fullmatch(pattern, name):
                problem = f"invalid name in `{section}`"
                problems.append(located(problem, field=section, expected=expected, found=name))
    if problems:
        raise ConfigError("\n".join(problems))


def _other_than_text(name: str) -> bool:
    try:
        return not isinstance(yaml.safe_load(name), str) and bool(re.fullmatch(r"[\w.+-]+", name))
    except yaml.YAMLError:
        return False
