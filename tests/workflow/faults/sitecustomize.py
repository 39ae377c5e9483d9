"""Stops a process of a rule at a chosen moment of its writing; Python loads this from the copied repository's root.

`FAULT` in the environment is JSON: `entry` names the module of the process (`python -m entry`), `trace` a file for what
processes did. At `moment` (the number of a write, `-1` for the end of the process) it does `do`: `kill` itself, or
`hold` until the file `release` exists, having written `reached`.
"""

import atexit
import fnmatch
import json
import os
import signal
import sys
import time
from pathlib import Path

FAULT = json.loads(os.environ.get("FAULT", "null"))
ENTRY = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
EVENTS = {"open", "os.rename", "os.link", "os.remove", "shutil.rmtree", "tempfile.mkdtemp"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def note(**fact) -> None:
    """One line of the trace, with the CPU seconds of this process and of its children so far."""
    spent = os.times()
    fact |= {"entry": ENTRY, "pid": os.getpid(), "own": spent.user + spent.system}
    fact |= {"children": spent.children_user + spent.children_system}
    fd = os.open(FAULT["trace"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, json.dumps(fact).encode() + b"\n")
    os.close(fd)


def act(what: str) -> None:
    """The fault itself."""
    note(what=FAULT["do"], at=what)
    if FAULT["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    Path(FAULT["reached"]).write_text(str(os.getpid()))
    while not Path(FAULT["release"]).exists():
        time.sleep(0.02)


def watch(entry: str) -> None:
    """Count the writes below the working folder and act at the chosen one."""
    main, here, count = os.getpid(), os.getcwd() + os.sep, 0
    done = False

    def hook(event, arguments):
        nonlocal count, done
        if event not in EVENTS or done or os.getpid() != main:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        path = os.path.abspath(os.fsdecode(arguments[0])) if isinstance(arguments[0], str | bytes | Path) else ""
        if not path.startswith(here) or path.endswith(".lock") or "/.snakemake/" in path:
            return
        moment, pattern = FAULT.get("moment"), FAULT.get("path")
        count += 1
        due = count == moment or (pattern and fnmatch.fnmatch(path, pattern))
        if due and entry == FAULT.get("entry"):
            done = True  # before acting: what follows opens files too
            act(f"{event} {path}")
        elif moment is None and pattern is None:
            done = True
            note(what="write", event=event, path=path, count=count)
            done = False

    def ended() -> None:
        nonlocal done
        if os.getpid() == main:
            done = True
            if entry == FAULT.get("entry") and FAULT.get("moment") == -1:
                act("end")
            note(what="end")

    sys.addaudithook(hook)
    atexit.register(ended)


if FAULT and ENTRY.partition(".")[0] in ("workflow_scripts", "coordexp"):
    watch(ENTRY)
