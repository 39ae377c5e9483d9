"""Mixtures: configuration, quotas, rounds without repetition, units, and each source's categories."""

from collections import Counter

import msgspec
import numpy as np
import pytest
from dataset_cases import make_record, write_dataset

from coordexp.datasets.mixture import (
    Mixture,
    MixtureConfig,
    MixtureSource,
    check_json_options,
    load_mixture,
    mixture_files,
    quotas,
)
from coordexp.datasets.samples import CategoryTable, SampleOptions, Samples, read_category_table, write_category_table
from coordexp.datasets.tokenize import tokenize
from coordexp.records import Metadata
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.runtime.io import read_json, write_json, write_jsonl


def files(tmp_path, **counts):
    """One file of token-space records for each name."""
    for name, count in counts.items():
        write_jsonl(tmp_path / f"{name}.pixel.jsonl", [make_record(i) for i in range(count)])
        tokenize(tmp_path / f"{name}.pixel.jsonl", tmp_path / f"{name}.jsonl")


def config(tmp_path, text, name="mix.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def drawn(mixture, number) -> np.ndarray:
    """(source, line) of each record of an epoch."""
    return np.array([mixture.locate(position) for position in mixture.epoch(number)])


def source_counts(rows) -> list[int]:
    return np.bincount(rows[:, 0]).tolist()


def test_a_mixture_with_its_own_prompts(tmp_path):
    files(tmp_path, a=10, b=20)
    path = config(
        tmp_path,
        "seed: 5\n"
        "sources:\n"
        "  a: {jsonl: a.jsonl, user_prompt: Find parts., json_format: compact}\n"
        "  b: {jsonl: b.jsonl, ratio: 0.5}\n",
    )
    mixture = load_mixture(path)
    opened = Mixture(mixture, "token")
    assert opened.quotas == [10, 10]
    rows = drawn(opened, 0)
    assert source_counts(rows) == [10, 10]
    found, file, settings = opened.record(*rows[np.argmin(rows[:, 0])])
    assert file == tmp_path / "a.jsonl"
    assert found.coord_space == "token"
    assert settings.style == {"user_prompt": "Find parts.", "json_format": "compact"}
    assert mixture.sources["b"].style == {}
    check_json_options(mixture, "json", path)
    with pytest.raises(ConfigError, match=r"sources\.a\.json_format: has no effect in answers of the format grouped"):
        check_json_options(mixture, "grouped", path)


def test_json_is_a_configuration_too(tmp_path):
    files(tmp_path, a=3)
    assert (
        load_mixture(config(tmp_path, '{"sources": {"a": {"jsonl": "a.jsonl", "ratio": 2}}}', "mix.json"))
        .sources["a"]
        .ratio
        == 2
    )


def test_epochs_are_reproducible_and_different(tmp_path):
    files(tmp_path, a=30, b=30)
    text = "sources:\n  a: {jsonl: a.jsonl}\n  b: {jsonl: b.jsonl, seed: 4}\n"
    one, two = (Mixture(load_mixture(config(tmp_path, text)), "token") for _ in range(2))
    assert np.array_equal(one.epoch(3), two.epoch(3))
    assert not np.array_equal(one.epoch(0), one.epoch(1))
    sources = drawn(one, 0)[:, 0].tolist()
    assert sources != sorted(sources)  # mixed, not in a row
    other = Mixture(load_mixture(config(tmp_path, text.replace("seed: 4", "seed: 5"))), "token")
    assert sorted(one.epoch(0)) == sorted(other.epoch(0))  # a whole round holds every image, whatever the seed


def test_the_order_is_that_of_shuffled_rounds_that_are_shuffled_once_more(tmp_path):
    files(tmp_path, a=7, b=11)
    text = "sources:\n  a: {jsonl: a.jsonl, ratio: 1.4}\n  b: {jsonl: b.jsonl, seed: 4}\n"
    mixture = Mixture(load_mixture(config(tmp_path, text)), "token")
    rounds = [np.random.default_rng([17, 0, 0, n]).permutation(7) for n in (4, 5)]
    expected = [(0, line) for line in np.concatenate(rounds)[2:12]]  # epoch 3: draws 30 to 39
    expected += [(1, line) for line in np.random.default_rng([17, 4, 1, 3]).permutation(11)]
    order = np.random.default_rng([17, 3]).permutation(len(expected))
    assert drawn(mixture, 3).tolist() == np.array(expected)[order].tolist()


@pytest.mark.parametrize("ratio", [0.3, 1.0, 1.7, 2.5])
def test_no_image_repeats_before_all_others_were_drawn(tmp_path, ratio):
    files(tmp_path, a=17)
    opened = Mixture(load_mixture(config(tmp_path, f"sources: {{a: {{jsonl: a.jsonl, ratio: {ratio}}}}}")), "token")
    seen: Counter = Counter()
    for number in range(8):
        lines = drawn(opened, number)[:, 1].tolist()
        assert len(lines) == round(17 * ratio)
        seen.update(lines)
        every = [seen[line] for line in range(17)]
        assert max(every) - min(every) <= 1


def test_quotas_are_exact():
    def shares(size, *ratios):
        sources = {str(i): MixtureSource("x", ratio=r) for i, r in enumerate(ratios)}
        return quotas(MixtureConfig(sources, epoch_size=size), [100] * len(ratios))

    assert shares(10, 1, 1, 1) == [4, 3, 3]
    assert shares(1000, 0.7, 0.2, 0.1) == [700, 200, 100]
    for size in (1, 7, 99):
        assert sum(shares(size, 0.5, 1.3, 2.2)) == size


def test_an_epoch_of_a_given_size(tmp_path):
    files(tmp_path, a=5, b=50)
    text = "epoch_size: 40\nsources: {a: {jsonl: a.jsonl, ratio: 1}, b: {jsonl: b.jsonl, ratio: 3}}"
    opened = Mixture(load_mixture(config(tmp_path, text)), "token")
    assert source_counts(drawn(opened, 2)) == [10, 30]


def test_extends_merges_and_keeps_each_files_own_paths(tmp_path):
    (tmp_path / "base").mkdir()
    files(tmp_path, mine=4)
    files(tmp_path / "base", a=3, b=3)
    config(tmp_path / "base", "seed: 1\nsources: {a: {jsonl: a.jsonl, ratio: 2}, b: {jsonl: b.jsonl}}")
    text = "extends: base/mix.yaml\nsources: {a: {ratio: 0.5}, b: null, mine: {jsonl: mine.jsonl}}"
    mixture = load_mixture(config(tmp_path, text))
    assert list(mixture.sources) == ["a", "mine"]
    assert mixture.sources["a"] == MixtureSource(str(tmp_path / "base" / "a.jsonl"), ratio=0.5)
    assert mixture.seed == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sources: {a: {jsonl: a.jsonl, ration: 2}}", r"sources\.a\.ration: unknown key, did you mean 'ratio'"),
        ("source: {a: {jsonl: a.jsonl}}", r"source: unknown key, did you mean 'sources'"),
        ("sources: {a: {jsonl: no.jsonl}}", r"sources\.a\.jsonl: file not found.*no\.jsonl"),
        ("sources: {a: {jsonl: a.jsonl, ratio: 0}}", r"sources\.a\.ratio: invalid ratio; expected 'a positive number'"),
        ("sources: {a: {jsonl: a.jsonl, ratio: .nan}}", r"sources\.a\.ratio"),
        ("sources: {a: {jsonl: a.jsonl, ratio: many}}", "expected `float`"),
        ("sources: {}", "no sources"),
        ("sources: [a.jsonl]", r"mix\.yaml: sources: expected a map of sources by name; found 'list'"),
        ("sources: {a: {ratio: 1}}", "sources.a.jsonl: required key is missing"),
        ("extends: mix.yaml\nsources: {a: {jsonl: a.jsonl}}", "circular `extends`: mix.yaml -> mix.yaml"),
        ("extends: none.yaml", r"none\.yaml: file not found"),
        ("- a", "expected a map of settings"),
        ("sources: [", "invalid YAML"),
    ],
)
def test_an_invalid_configuration(tmp_path, text, words):
    files(tmp_path, a=3)
    with pytest.raises(ConfigError, match=words):
        load_mixture(config(tmp_path, text))


def test_every_record_of_a_source_must_be_in_the_expected_space(tmp_path):
    files(tmp_path, a=3)
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes() + (tmp_path / "a.pixel.jsonl").read_bytes())
    mixture = load_mixture(config(tmp_path, "sources: {a: {jsonl: a.jsonl}}"))
    words = r"a.jsonl:4: coord_space: wrong coordinate space; expected 'token', found 'pixel'"
    with pytest.raises(DataError, match=words):
        Mixture(mixture, "token")


def test_an_empty_source_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match="no records"):
        Mixture(load_mixture(config(tmp_path, "sources: {a: {jsonl: a.jsonl}}")), "token")


STREET = CategoryTable({1: "person", 2: "dog", 3: "car"}, exhaustive=True)
PARTS = {1: "bolt", 2: "hex_nut", 9: "washer"}


def holding(i, *categories, neg=()):
    """A image with one box for each (id, description) of `categories`."""
    bare = make_record(i, boxes=((0.1, 0.2, 0.5, 0.6),) * len(categories))
    objects = [
        msgspec.structs.replace(obj, category_id=category, desc=desc)
        for obj, (category, desc) in zip(bare.objects, categories, strict=True)
    ]
    return msgspec.structs.replace(bare, objects=objects, metadata=Metadata(i, 640, 480, neg_category_ids=list(neg)))


def write_sources(tmp_path, *parts):
    """Streets, annotated exhaustively, and `parts`, where what is absent is listed."""
    streets = [holding(1, (1, "person"), (3, "car")), holding(2)]
    for name, rows in (("street", streets), ("parts", parts)):
        write_jsonl(tmp_path / f"{name}.pixel.jsonl", rows)
        tokenize(tmp_path / f"{name}.pixel.jsonl", tmp_path / f"{name}.jsonl")


def mixed(tmp_path, own="", **options):
    """Samples of both sources under the table of streets; `own` are further keys of the parts."""
    text = f"sources: {{street: {{jsonl: street.jsonl}}, parts: {{jsonl: parts.jsonl{own}}}}}"
    options = SampleOptions(**({"category_ratio": 1.0, "negatives": 9} | options))
    return Samples(load_mixture(config(tmp_path, text)), "token", options, STREET)


def asked(some, epoch=0):
    """What each image's prompt names, by its id."""
    shown = [some.get(i, epoch) for i in range(len(some))]
    return {s.record.metadata.image_id: s.categories and sorted(s.categories) for s in shown}


def parts_manifest(tmp_path, format="lvis"):
    (tmp_path / "of_parts").mkdir()
    return write_dataset(
        tmp_path / "of_parts", categories=[{"id": i, "name": name} for i, name in PARTS.items()], format=format
    )


@pytest.mark.parametrize("kind", ["table", "manifest"])
@pytest.mark.parametrize(("style", "nut"), [("pretty", "hex nut"), ("raw", "hex_nut")])
def test_ids_of_a_source_are_looked_up_in_its_own_table(tmp_path, kind, style, nut):
    write_sources(tmp_path, holding(7, (1, "bolt")), holding(8, (2, nut), neg=[9]), holding(9))
    manifest = parts_manifest(tmp_path)
    own = f", categories: of_parts/train.source.json, desc: {style}"
    if kind == "table":
        write_category_table(manifest, tmp_path / "parts.categories.json", style)
        own = ", categories: parts.categories.json"
    street = ["car", "dog", "person"]
    assert asked(mixed(tmp_path, own)) == {1: street, 2: street, 7: ["bolt"], 8: sorted([nut, "washer"]), 9: None}


def test_prompts_of_a_mixture_are_the_same_however_often_and_in_which_order_they_are_drawn(tmp_path):
    write_sources(tmp_path, holding(7, (1, "bolt"), (9, "washer")), holding(8, (2, "hex nut"), neg=[9]))
    parts_manifest(tmp_path)
    one, two = (mixed(tmp_path, ", categories: of_parts/train.source.json", category_ratio=0.5) for _ in range(2))
    places = [(i, epoch) for epoch in range(4) for i in range(len(one))]
    assert {place: one.get(*place) for place in places} == {place: two.get(*place) for place in reversed(places)}


def test_a_manifest_says_whether_its_annotations_are_exhaustive(tmp_path):
    write_sources(tmp_path, holding(7, (1, "bolt")))
    parts_manifest(tmp_path, format="coco")
    some = mixed(tmp_path, ", categories: of_parts/train.source.json")
    assert asked(some)[7] == ["bolt", "hex nut", "washer"]


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (
            (1, "bolt"),
            r"desc: differs from the name of category 1 in the category table; expected 'person', found 'bolt'",
        ),
        ((9, "washer"), r"category_id: the category table lacks this id; expected 'one of its 3 ids', found 9"),
    ],
)
def test_a_record_of_another_table_is_an_error_and_no_wrong_prompt(tmp_path, obj, words):
    write_sources(tmp_path, holding(7, (2, "dog")), holding(8, (2, "dog"), obj))
    with pytest.raises(DataError, match=rf"parts\.jsonl:2: objects\[1\]\.{words}\n  -> .*`categories` of their source"):
        asked(mixed(tmp_path))
    assert asked(mixed(tmp_path, category_ratio=0.0))[8] is None  # nothing is looked up


def test_the_names_of_a_manifest_in_another_style_are_an_error(tmp_path):
    write_sources(tmp_path, holding(7, (2, "hex_nut")))
    parts_manifest(tmp_path)
    with pytest.raises(DataError, match=r"expected 'hex nut', found 'hex_nut'\n  -> .*`desc`"):
        asked(mixed(tmp_path, ", categories: of_parts/train.source.json"))


def test_every_source_needs_a_table_for_prompts_that_name_categories(tmp_path):
    write_sources(tmp_path, holding(7, (1, "bolt")))
    parts_manifest(tmp_path)
    parts = "parts: {jsonl: parts.jsonl, categories: of_parts/train.source.json}"
    mixture = load_mixture(config(tmp_path, f"sources: {{{parts}, street: {{jsonl: street.jsonl}}}}"))
    with pytest.raises(DataError, match=r"sources\.street\.categories: .*category table\n.*custom\.categories"):
        Samples(mixture, "token", SampleOptions(category_ratio=0.5), None)
    only = msgspec.structs.replace(mixture, sources={"parts": mixture.sources["parts"]})
    assert asked(Samples(only, "token", SampleOptions(category_ratio=1.0), None)) == {7: ["bolt"]}


def test_tables_are_named_relative_to_the_file_and_inherited(tmp_path):
    (tmp_path / "base").mkdir()
    files(tmp_path / "base", a=1, b=1)
    write_json(tmp_path / "base" / "a.categories.json", STREET)
    source = "{jsonl: a.jsonl, categories: a.categories.json}"
    config(tmp_path / "base", f"sources: {{a: {source}, b: {{jsonl: b.jsonl}}, c: {source}}}")
    path = config(tmp_path, "extends: base/mix.yaml\nsources: {a: {ratio: 2}, c: {categories: null}}")
    table = tmp_path / "base" / "a.categories.json"
    assert {name: source.categories for name, source in load_mixture(path).sources.items()} == {
        "a": str(table),
        "b": None,
        "c": None,
    }
    assert mixture_files(path, "categories") == [table]
    assert mixture_files(path) == [tmp_path / "base" / f"{name}.jsonl" for name in "aba"]
    assert read_category_table(table) == STREET


def test_a_file_that_is_not_a_table(tmp_path):
    write_sources(tmp_path, holding(7, (1, "bolt")))
    with pytest.raises(ConfigError, match=r"sources\.parts\.categories: file not found; found '.*/no\.json'"):
        mixed(tmp_path, ", categories: no.json")
    write_json(tmp_path / "names.json", {"1": "bolt"})
    with pytest.raises(DataError, match=r"names\.json: not a category table: .*\n  -> "):
        mixed(tmp_path, ", categories: names.json")


def test_the_form_of_a_table(tmp_path):
    write_category_table(parts_manifest(tmp_path), tmp_path / "t.json", "pretty")
    assert read_json(tmp_path / "t.json") == {
        "names": {"1": "bolt", "2": "hex nut", "9": "washer"},
        "exhaustive": False,
    }
