"""Explains a failed job of the workflow from its log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

ERROR = "error: "
LINE_ENDS = re.compile(r"[\r\n]+|(?<=\])(?=error: )")  # an error may follow a progress bar on its line
CONTINUES = "run the same command again"


def explain(rule: str, wildcards: Mapping[str, str], logs: Iterable[str]) -> str:
    """Cause, remedy and log of a failed job, each on a line of its own."""
    of = ", ".join(f"{name}={value}" for name, value in wildcards.items() if value)
    logs = list(logs)
    texts = [Path(log).read_text(encoding="utf-8", errors="replace") for log in logs if Path(log).is_file()]
    lines = [f"rule {rule}{f' ({of})' if of else ''}: {cause(''.join(texts))}"]
    if "\n  -> " not in lines[0] and CONTINUES not in lines[0]:
        lines.append(f"  -> read the log, fix the cause, and {CONTINUES} to continue")
    return "\n".join([*lines, *(f"  log: {log}" for log in logs)])


def cause(log: str) -> str:
    """The first error in a log, with its indented lines; otherwise the last line, which ends a traceback."""
    lines = [line.rstrip() for line in LINE_ENDS.split(log) if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith(ERROR)]
    if not starts:
        return lines[-1] if lines else "ended without a message"
    end = starts[0] + 1
    while end < len(lines) and lines[end].startswith("  "):
        end += 1
    return "\n".join(lines[starts[0] : end]).removeprefix(ERROR)
