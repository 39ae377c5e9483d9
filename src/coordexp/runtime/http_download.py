"""Download of one file over HTTP(S): resumed by byte ranges, retried, verified, and renamed when it is complete."""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from coordexp import __version__
from coordexp.runtime.errors import DownloadError, located
from coordexp.runtime.estimates import require_space
from coordexp.runtime.io import sha256_file, write_text
from coordexp.runtime.locks import FULL
from coordexp.runtime.progress import Progress

SECRET_URLS = "COORDEXP_SECRET_URLS"  # environment variable of jobs: a JSON object of URLs by `url_key`
BLOCK = 1 << 20
MARGIN = 64 << 20  # bytes that must be free while a body arrives, checked once per as many bytes
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_INTEGER = r"[0-9]{1,30}"
_CONTENT_RANGE = re.compile(rf"bytes ({_INTEGER})-({_INTEGER})/({_INTEGER})")
_VALIDATOR = re.compile(r"[\x20-\x7e\xa0-\xff]+")  # what a header can contain


class Policy(msgspec.Struct, frozen=True):
    """Retries of a download. `attempts` counts consecutive failures without a new byte.

    timeout: seconds without data after which a connection counts as stalled. The wait doubles from `first_wait` to
    `longest_wait` seconds, with jitter; a server's Retry-After is respected up to that limit.
    """

    attempts: int = 6
    timeout: float = 60.0
    first_wait: float = 1.0
    longest_wait: float = 60.0


class _Again(Exception):
    """A failure that is retried; `after` is the server's Retry-After in seconds."""

    def __init__(self, text: str, after: float | None = None):
        super().__init__(text)
        self.after = after


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    policy: Policy = Policy(),  # noqa: B008 -- frozen
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Download `url` to `target` and return its SHA-256; a `.part` file next to it survives a killed run.

    The download starts over if the file on the server changes. DownloadError if the server refuses or stays
    unreachable, or if the file does not match `size` (bytes) or `sha256`.
    """
    check_url(url)
    part = target.with_name(target.name + ".part")
    state = target.with_name(target.name + ".part.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(f"download {target.name}", size, "MB", scale=1e6)
    failures, wait = 0, policy.first_wait
    while True:
        before = _length(part)
        try:
            _transfer(url, part, state, policy, progress, size)
            break
        except (_Again, OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in FULL:
                raise
            moved = _length(part) > before
            failures, wait = (1, policy.first_wait) if moved else (failures + 1, wait)
            if failures >= policy.attempts:
                raise DownloadError(
                    located(f"{shown_url(url)}: {_text(error)}", field=f"gave up after {failures} tries")
                ) from error
            asked = getattr(error, "after", None) or 0.0
            pause = min(max(wait * random.uniform(0.75, 1.25), asked), policy.longest_wait)
            progress.note(f"{_text(error)}; next try in {pause:.1f} s")
            sleep(pause)
            wait = min(wait * 2, policy.longest_wait)
    progress.finish()
    found = _verify(url, part, state, size, sha256)
    part.replace(target)
    state.unlink(missing_ok=True)
    return found


def check_url(url: str) -> None:
    """DownloadError unless `url` is a well-formed HTTP(S) URL."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        unquote(parts.hostname or "").encode("idna")  # UnicodeError, a ValueError, for empty or long parts of the name
    except ValueError:
        valid = False
    if not valid or re.search(r"[\x00-\x20\x7f-\uffff]", url):
        raise _invalid_url(url)


def _invalid_url(url: str, problem: str = "invalid URL") -> DownloadError:
    fix = "correct the URL; for files of your own, set `root` of the dataset to their folder"
    return DownloadError(located(problem, expected="http:// or https://", found=shown_url(url), fix=fix))


def shown_url(url: str) -> str:
    """The URL without user, password, and the values of its query, which may be secret."""
    head, _, query = url.partition("?")
    head = re.sub(r"(?<=//)[^/@]*@", "", head)
    return f"{head}?{re.sub(r'=[^&]*', '=...', query)}" if query else head


def url_key(url: str) -> str:
    """`shown_url` with a digest of what it hides: different URLs have different keys."""
    shown = shown_url(url)
    return shown if shown == url else f"{shown}#{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def hide_urls(value: Any) -> Any:
    """The same JSON-compatible value with each URL replaced by its `url_key`, at any depth."""
    return _replace_urls(value, url_key)


def restore_urls(value: Any) -> Any:
    """The value before `hide_urls`, with the URLs in the environment variable SECRET_URLS."""
    known = json.loads(os.environ.get(SECRET_URLS) or "{}")
    return _replace_urls(value, lambda url: known.get(url, url))


def secret_urls(value: Any) -> dict[str, str]:
    """The URLs in a JSON-compatible value that `hide_urls` changes, by their keys: the value of SECRET_URLS."""
    found = {}

    def note(url: str) -> str:
        if url_key(url) != url:
            found[url_key(url)] = url
        return url

    _replace_urls(value, note)
    return found


def _replace_urls(value: Any, new: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace_urls(inner, new) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_urls(inner, new) for inner in value]
    return new(value) if isinstance(value, str) and re.match(r"https?://", value) else value


def _transfer(url: str, part: Path, state: Path, policy: Policy, progress: Progress, size: int | None) -> None:
    """One connection: continue `part` if the file on the server is unchanged, else start over."""
    have = _length(part)
    known = _known(state) if have else {}
    if not known or known.get("url") != url_key(url):
        have = 0
    headers = {"User-Agent": f"coordexp/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.get("validator"):
            headers["If-Range"] = known["validator"]
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=policy.timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                if known.get("total") == have:
                    return
                part.unlink(missing_ok=True)
                raise _Again("the server's file is shorter than what was fetched; starting over") from error
            if error.code in _RETRIED:
                raise _Again(
                    f"the server responded {error.code} {error.reason}", _retry_after(error.headers)
                ) from error
            fix = "check the URL, or fetch the file by other means"
            raise DownloadError(
                located(f"{shown_url(url)}: the server responded {error.code} {error.reason}", fix=fix)
            ) from error
    except ValueError as error:
        raise _invalid_url(url, f"the server redirects to an invalid URL: {error}") from error
    with answer:
        start, total = _extent(answer, have, known)
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if validator and validator.startswith("W/"):
            validator = answer.headers.get("Last-Modified")
        if start == have and have and known.get("validator") != validator:
            start = -1
        if start not in (0, have):
            part.unlink(missing_ok=True)
            raise _Again("the file on the server has changed; starting over")
        require_space(part.parent, (total or 0) - start, f"download {part.stem}")
        write_text(state, json.dumps({"url": url_key(url), "total": total, "validator": validator}))
        if total:
            progress.set_total(total)
        progress.resume_at(start)
        _copy(answer, part, start, progress, size)
    if total is not None and _length(part) != total and (size is None or _length(part) <= size):
        raise _Again(f"the connection ended at byte {_length(part):,} of {total:,}")


def _known(state: Path) -> dict:
    """What an earlier run recorded about the file on the server; {} if nothing, or if the record is damaged."""
    try:
        known = json.loads(state.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    validator = known.get("validator") if isinstance(known, dict) else ""
    valid = validator is None or (isinstance(validator, str) and _VALIDATOR.fullmatch(validator))
    return known if valid else {}


def _extent(answer, have: int, known: dict) -> tuple[int, int | None]:
    """(first byte of the response, size of the file or None); -1 if the range is not the requested one."""
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if match is None:
            return -1, None
        start, _, total = (int(g) for g in match.groups())
        same = start == have and known.get("total") in (None, total)
        return (start if same else -1), total
    length = answer.headers.get("Content-Length")
    return 0, int(length) if length is not None and re.fullmatch(_INTEGER, length) else None


def _copy(answer, part: Path, start: int, progress: Progress, size: int | None) -> None:
    """Append the body until it ends or has more than `size` bytes; SpaceError if the disk fills."""
    written, checked = start, start
    with part.open("r+b" if start else "wb") as out:
        out.seek(start)
        out.truncate()
        while block := answer.read1(BLOCK):
            if written + len(block) > checked:  # a body without length may be of any size
                require_space(part.parent, MARGIN, f"download {part.stem}")
                checked = written + MARGIN
            out.write(block)
            written += len(block)
            if size is not None and written > size:
                break  # `_verify` refuses it
            progress.add(len(block))
        out.flush()
        os.fsync(out.fileno())


def _verify(url: str, part: Path, state: Path, size: int | None, sha256: str | None) -> str:
    found, length = sha256_file(part), _length(part)
    wrong = None
    if size is not None and length != size:
        wrong = {"field": "size", "expected": size, "found": length if length < size else f"more than {size}"}
    elif sha256 is not None and found != sha256.lower():
        wrong = {"field": "sha256", "expected": sha256, "found": found}
    if wrong:
        part.unlink(missing_ok=True)
        state.unlink(missing_ok=True)
        fix = "check the URL; if the file was replaced: correct size/sha256, or remove its line in downloads.lock.json"
        raise DownloadError(located("wrong content", file=shown_url(url), fix=fix, **wrong))
    return found


def _retry_after(headers) -> float | None:
    value = headers.get("Retry-After")
    if value is None:
        return None
    if re.fullmatch(_INTEGER, value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _text(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(reason).__name__


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
