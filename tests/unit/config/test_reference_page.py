"""The reference of the configuration is the one that the schema, the defaults and the docstrings give."""

import importlib.util
import re
from pathlib import Path

import msgspec

REPOSITORY = Path(__file__).resolve().parents[3]
spec = importlib.util.spec_from_file_location("make_reference", REPOSITORY / "docs" / "make_reference.py")
make_reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_reference)


def test_the_committed_page_is_up_to_date():
    assert make_reference.PAGE.read_text() == make_reference.page(), "run: python docs/make_reference.py"


def test_every_key_says_what_it_means():
    rows = re.findall(r"^\| `([a-z][\w.{}]*)` \| (.*) \|$", make_reference.page(), flags=re.MULTILINE)
    assert len(rows) > 80
    assert [key for key, rest in rows if not rest.rsplit("|", 1)[1].strip()] == []


def test_every_original_name_has_its_place():
    page = make_reference.page()
    names = "FACTOR|MAX_BLOCKS|MIN_BLOCKS|POLY_MAX_POINTS|TINY|NUM_WORKERS|RAW_ROOT|OUTPUT_BASE|SPLITS"
    for name in names.split("|"):
        assert re.search(rf"^\| `{name}` \| \S", page, flags=re.MULTILINE), name


def test_meanings_are_read_from_a_docstring():
    class Knobs(msgspec.Struct):
        """Some knobs: of a thing. low, high: bounds, low: included. step: between them; wide
        when large. Nothing else.
        """

        low: int
        high: int
        step: int

    bounds = "bounds, low: included"
    assert make_reference.meanings(Knobs) == {
        "low": bounds,
        "high": bounds,
        "step": "between them; wide when large. Nothing else",
    }
