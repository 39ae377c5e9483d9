"""Plug-ins: the user's own Python files, which register loss terms, metrics, formats, decoding modes or models.

The workflow's `plugins` key lists them; `$COORDEXP_PLUGINS` carries the list to every process of a run. A plug-in is
imported once per process, before the configuration is validated, so its names are valid choices everywhere.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from coordexp.runtime.errors import ConfigError, located

VARIABLE = "COORDEXP_PLUGINS"


def load_plugins(files: Iterable[str | Path] | None = None) -> list[Path]:
    """Import each plug-in file once; without `files`, those listed in `$COORDEXP_PLUGINS`. Returns absolute paths.

    ConfigError if a file does not exist. An exception raised while importing a plug-in is not caught.
    """
    if files is None:
        files = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    loaded = []
    for file in (Path(name).resolve() for name in files):
        if not file.is_file():
            raise ConfigError(located("plug-in file not found", file=file, field="plugins"))
        name = f"coordexp_plugin_{file.stem}"
        earlier = sys.modules.get(name)
        if earlier is not None and earlier.__file__ != str(file):
            raise ConfigError(located("two plug-ins have the same file name", file=file, found=earlier.__file__))
        if earlier is None:
            spec = importlib.util.spec_from_file_location(name, file)
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        loaded.append(file)
    return loaded
