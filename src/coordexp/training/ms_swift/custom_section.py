"""How the `custom` section of a recipe reaches the plug-ins: JSON in one environment variable.

ms-swift hands its own arguments to every process that it starts; the environment is the one channel
that reaches all of them (torchrun, loader workers) without a change to ms-swift.
"""

from __future__ import annotations

import functools
import json
import os
from typing import Any

from coordexp.recipe import Custom
from coordexp.runtime.config_io import convert
from coordexp.runtime.errors import ConfigError

VARIABLE = "COORDEXP_CUSTOM"


@functools.cache
def custom_section() -> Custom:
    """The typed `custom` section of this process; ConfigError when the variable is missing."""
    return convert(custom(), Custom, f"${VARIABLE}", "custom")


def custom() -> dict[str, Any]:
    """The same as a plain map."""
    text = os.environ.get(VARIABLE)
    if not text:
        raise ConfigError(
            f"{VARIABLE} is not set\n  -> start training with `coordexp train`, or export the recipe's custom section"
        )
    return json.loads(text)
