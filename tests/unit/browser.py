"""A headless Chromium, driven through the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--remote-debugging-pipe")


class Browser:
    """One page of a browser; `events` are those of the protocol so far, such as network requests."""

    def __init__(self, profile: Path, *, size: tuple[int, int] = (1280, 1200)):
        assert BROWSER is not None
        theirs, self._write = os.pipe()
        self._read, their_end = os.pipe()
        actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, theirs, 3), (os.POSIX_SPAWN_DUP2, their_end, 4)]
        command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank"]
        self._process = os.posix_spawn(BROWSER, command, os.environ, file_actions=actions, setpgroup=0)
        os.close(theirs)
        os.close(their_end)
        self.events: list[dict[str, Any]] = []
        self._buffer, self._last, self._session = b"", 0, None
        pages = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in pages if target["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._read)
        os.close(self._write)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for answer in self._received(deadline):
                if answer.get("id") == self._last:
                    assert "error" not in answer, (method, answer["error"])
                    return answer["result"]
        raise TimeoutError(method)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression; an exception of the page fails the test."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression is truthy."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.evaluate(f"!!({script})"):
                return
            time.sleep(0.1)
        raise TimeoutError(f"{script}; the page shows: {self.evaluate('document.body.innerText')[-2000:]}")

    def set_files(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in an `input[type=file]`."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def type_into(self, selector: str, text: str) -> None:
        """Replace the text of a field as a user would."""
        self.evaluate(f"(() => {{ const e = document.querySelector({selector!r}); e.focus(); e.select(); }})()")
        self.send("Input.insertText", text=text)

    def screenshot(self, file: Path) -> None:
        content = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(content))

    def requested(self) -> list[str]:
        """URLs of all requests of the page."""
        found = (event for event in self.events if event["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in found]

    def errors(self) -> list[str]:
        """Exceptions of the page's scripts."""
        return [str(event["params"]) for event in self.events if event["method"] == "Runtime.exceptionThrown"]

    def _received(self, deadline: float) -> list[dict[str, Any]]:
        """Complete messages that have arrived; events are also kept."""
        ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
        if ready:
            block = os.read(self._read, 1 << 20)
            if not block:
                raise EOFError("the browser has ended")
            self._buffer += block
        *complete, self._buffer = self._buffer.split(b"\0")
        messages = [json.loads(message) for message in complete]
        self.events += [message for message in messages if "method" in message]
        return messages
