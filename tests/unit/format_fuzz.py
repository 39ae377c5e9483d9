"""Mutated files of a dataset: every format reads them, counts what it skips, or raises an error for users."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from coordexp.datasets.download import provide
from coordexp.runtime.errors import CoordExpError

TOKENS = [b"NaN", b"-1", b"1e999", b"999999999999999999999", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"", b"\r\n", b"\\"]
TOKENS += [
    b"../",
    b"<",
    b"&x;",
    b'"',
    b"'",
    b"{",
    b"]",
    b",",
    b";",
    b"\t",
    b"null",
    b"true",
    b"- ",
    b": ",
    b"%n",
    b"\xc3",
]
CASES_IN_CI = 40


def mutate(data: bytes, random: random.Random) -> bytes:
    """`data` with one to four changes: bytes replaced, cut, repeated, or a token that often causes trouble."""
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(data) + 1)
        end = min(len(data), start + random.choice((0, 1, 1, 3, 10, 100)))
        pieces = (
            b"",
            random.choice(TOKENS),
            bytes(random.randrange(256) for _ in range(random.randint(1, 4))),
            data[start:end] * 3,
            data[random.randrange(len(data) + 1) :][:20],
        )
        middle = random.choice(pieces)
        data = data[:start] + middle + data[end:]
        if random.random() < 0.05:
            data = data[:start]
    return data


def fuzz(make: Callable[[Path], dict], tmp_path: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Provide the split `train` of `count` datasets, each with one mutated file; returns the number of outcomes.

    `make` writes a valid dataset to a folder and returns its entry in the configuration, without `root`. Images are not
    mutated. Anything but an error for users fails the test, and so does an output that is no valid annotation file.
    """
    outcomes = {"read": 0, "skipped": 0, "refused": 0}
    original = tmp_path / "original"
    entry = make(original)
    files = sorted(p for p in original.rglob("*") if p.is_file() and p.suffix not in (".jpg", ".png"))
    for n in range(count):
        choose = random.Random(f"{seed} {n}")
        root, raw = tmp_path / f"{n}", tmp_path / f"{n}.raw"
        shutil.copytree(original, root)
        changed = root / choose.choice(files).relative_to(original)
        changed.write_bytes(mutate(changed.read_bytes(), choose))
        on_bad = choose.choice(("error", "skip", "skip"))
        try:
            provide("fuzzed", {**entry, "root": str(root), "on_bad": on_bad}, "train", raw, raw / "train.source.json")
        except CoordExpError as error:
            outcomes["refused"] += 1
            assert "\n  ->" in str(error) or str(root) in str(error) or "datasets." in str(error), f"case {n}: {error}"
        except Exception as error:
            raise AssertionError(f"case {n} (seed {seed}): {changed} raises {error!r}") from error
        else:
            content = json.loads((raw / "train.annotations.json").read_text())
            outcomes["skipped" if content.get("skipped") else "read"] += 1
        shutil.rmtree(root)
        shutil.rmtree(raw, ignore_errors=True)
    return outcomes
