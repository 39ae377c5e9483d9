"""The reference page of the configuration is generated from its types."""

import importlib.util
import re
from pathlib import Path
from typing import Annotated

import msgspec

from coordexp.runtime.config_io import choice
from coordexp.runtime.registry import Registry

REPOSITORY = Path(__file__).resolve().parents[3]
spec = importlib.util.spec_from_file_location("make_reference", REPOSITORY / "docs" / "make_reference.py")
make_reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_reference)


def test_the_committed_page_is_up_to_date():
    assert make_reference.PAGE.read_text() == make_reference.page(), "run: python docs/make_reference.py"


def test_every_key_is_described():
    rows = re.findall(r"^\| `([a-z][\w.{}]*)` \| (.*) \|$", make_reference.page(), flags=re.MULTILINE)
    assert len(rows) > 80
    assert [key for key, rest in rows if not rest.rsplit("|", 1)[1].strip()] == []


def test_every_name_of_the_original_scripts_is_listed():
    page = make_reference.page()
    names = "FACTOR|MAX_BLOCKS|MIN_BLOCKS|POLY_MAX_POINTS|TINY|NUM_WORKERS|RAW_ROOT|OUTPUT_BASE|SPLITS"
    for name in names.split("|"):
        assert re.search(rf"^\| `{name}` \| \S", page, flags=re.MULTILINE), name


def test_types_bounds_and_choices_are_those_of_the_structs():
    terms = Registry("loss term")
    terms.register("giou")(object())
    fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
    fields = [
        ("share", Annotated[fraction | None, msgspec.Meta(description="a share")], None),
        ("weights", dict[choice(terms), float], {}),
        ("term", choice(terms, "a term"), "giou"),
        ("pair", Annotated[tuple[int, int], msgspec.Meta(description="two")], (1, 2)),
    ]
    assert [tuple(row) for row in make_reference.struct_rows("a", msgspec.defstruct("Options", fields))] == [
        ("a.share", "number, >= 0, <= 1", "`null`", "a share"),
        ("a.weights", "map of loss term to number", "`{}`", ""),
        ("a.term", "`giou`", '`"giou"`', "a term"),
        ("a.pair", "list of 2 integers", "`[1, 2]`", "two"),
    ]
