"""Convert 2,000 mutated annotation files: python tests/soak/fuzz_annotations.py [COUNT]."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from annotation_fuzz import fuzz

if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as log, contextlib.redirect_stderr(log):
        outcomes = fuzz(Path(folder), first=1000, count=count)
    print(f"{count} annotation files: {outcomes}")
