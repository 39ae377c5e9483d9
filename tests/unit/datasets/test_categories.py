"""Category tables and descriptions."""

import json
from pathlib import Path

import pytest

from coordexp.datasets.categories import Category, category_ids, descriptions, load_categories, pretty
from coordexp.runtime.errors import DataError


def write_categories(tmp_path, categories) -> Path:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return path


def test_categories_of_coco_and_lvis(tmp_path):
    lvis = {"id": 3, "name": "baseball_bat", "synonyms": ["baseball_bat", "bat"], "frequency": "c", "def": "a club"}
    coco = {"id": 4, "name": "stop sign", "supercategory": "outdoor"}
    assert load_categories(write_categories(tmp_path, [lvis, coco])) == [
        Category(3, "baseball_bat", ["baseball_bat", "bat"], "c"),
        Category(4, "stop sign"),
    ]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"id": 5}, r"categories\[1\]: category 5 has no name"),
        ({"id": 5, "name": " "}, "category 5 has no name"),
        ({"id": 3, "name": "again"}, "category id 3 is repeated"),
        ({"id": "x", "name": "y"}, "category x"),
    ],
)
def test_a_bad_category_is_named_or_left_out(tmp_path, bad, problem):
    path = write_categories(tmp_path, [{"id": 3, "name": "cat"}, bad])
    with pytest.raises(DataError, match=problem):
        load_categories(path)
    assert [c.name for c in load_categories(path, "skip")] == ["cat"]


def test_all_bad_categories_are_counted_and_the_first_twenty_listed(tmp_path):
    path = write_categories(tmp_path, [{"id": 3, "name": "cat"}, *({"id": n} for n in range(10, 35))])
    with pytest.raises(DataError, match="25 problems, the first 20 of them") as error:
        load_categories(path)
    assert str(error.value).count("has no name") == 20
    assert "categories[20]: category 29 has no name" in str(error.value)


def test_no_categories_is_an_error(tmp_path):
    with pytest.raises(DataError, match="categories: the list is missing or empty"):
        load_categories(write_categories(tmp_path, []))


def test_descriptions_are_reversible():
    table = [Category(1, "baseball_bat"), Category(2, "stop sign"), Category(3, "bow_(weapon)")]
    assert pretty("baseball_bat") == "baseball bat"
    for style in ("pretty", "raw"):
        texts = descriptions(table, style)
        assert {category_ids(table, style)[texts[c.id]] for c in table} == {1, 2, 3}
    assert descriptions(table, "pretty")[3] == "bow (weapon)"
    with pytest.raises(DataError, match=r"1 \('hot_dog'\) and 2 \('hot dog'\) have the same description 'hot dog'"):
        descriptions([Category(1, "hot_dog"), Category(2, "hot dog")], "pretty")
    assert descriptions([Category(1, "hot_dog"), Category(2, "hot dog")], "raw") == {1: "hot_dog", 2: "hot dog"}
