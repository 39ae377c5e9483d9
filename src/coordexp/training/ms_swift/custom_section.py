"""The `custom` section of the recipe in a training process, passed as JSON in an environment variable.

It is not an ms-swift argument, and the environment reaches every process (torchrun, loader workers).
"""

from __future__ import annotations

import functools
import json
import os

from coordexp.recipe import Custom
from coordexp.runtime.config_io import convert
from coordexp.runtime.errors import ConfigError, located

VARIABLE = "COORDEXP_CUSTOM"


@functools.cache
def custom_section() -> Custom:
    """The typed `custom` section of this process; ConfigError if the variable is not set."""
    text = os.environ.get(VARIABLE)
    if not text:
        fix = "start training with `coordexp train`, or export the recipe's custom section as JSON"
        raise ConfigError(located(f"${VARIABLE} is not set", fix=fix))
    return convert(json.loads(text), Custom, f"${VARIABLE}", "custom")
