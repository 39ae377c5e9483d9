"""A server of a model in a process of its own, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


@contextlib.contextmanager
def started(command: Sequence[str], env: Mapping[str, str], log: Path, seconds: float) -> Iterator[str]:
    """Base address of the server that `command` with `--port` starts, once it answers at /health.

    AssertionError with the end of its log if it ends, or does not answer within `seconds`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    with (
        log.open("w") as out,
        subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out, env={**os.environ, **env}) as process,
    ):
        try:
            while not answers(f"{address}/health"):
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
                time.sleep(0.5)
            yield f"{address}/v1"
        finally:
            process.terminate()


def answers(address: str) -> bool:
    """Whether a server answers at an address without an error."""
    try:
        urllib.request.urlopen(address, timeout=5)
        return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
