"""Samples: functions of seed, epoch and index; negatives are only what is known to be absent."""

import msgspec
import pytest

from coordexp.datasets.mixture import MixtureConfig, MixtureSource, single_file_mixture
from coordexp.datasets.samples import CategoryTable, SampleOptions, Samples
from coordexp.records import Metadata, Object, Phrase, Record
from coordexp.runtime import io
from coordexp.runtime.errors import DataError

NAMES = {1: "cat", 2: "dog", 3: "cow", 4: "car", 5: "bus"}


def record(number, categories, neg=(), not_exhaustive=()):
    objects = [
        Object(desc=NAMES[c], category_id=c, norm=[0.1 * i, 0.8 - 0.1 * i, 0.1 * i + 0.2, 0.9], bbox_2d=box(i))
        for i, c in enumerate(categories)
    ]
    meta = Metadata(number, 96, 96, neg_category_ids=list(neg), not_exhaustive_category_ids=list(not_exhaustive))
    return Record(["x.png"], 96, 96, "token", objects, meta)


def box(i):
    return [f"<|coord_{k}|>" for k in (100 * i, 800 - 100 * i, 100 * i + 200, 899)]


@pytest.fixture
def jsonl(tmp_path):
    rows = [
        record(1, [1, 2, 1], neg=[3, 4]),
        record(2, [], neg=[1, 5]),
        record(3, [2, 3, 4], neg=[1], not_exhaustive=[2]),
        record(4, [5]),
    ]
    io.write_jsonl(tmp_path / "t.jsonl", rows)
    return tmp_path / "t.jsonl"


def samples(path, exhaustive=False, **options):
    return Samples(single_file_mixture(path), "token", SampleOptions(**options), CategoryTable(NAMES, exhaustive))


def drawn_samples(some, epoch=0):
    return {s.record.metadata.image_id: s for s in (some.get(i, epoch) for i in range(len(some)))}


def test_an_epoch_shows_every_image_once(jsonl):
    for epoch in range(3):
        assert sorted(drawn_samples(samples(jsonl), epoch)) == [1, 2, 3, 4]


def test_sorted_is_top_to_bottom_then_left_to_right(jsonl):
    shown = drawn_samples(samples(jsonl))[3].record.objects
    assert [obj.norm[1] for obj in shown] == sorted(obj.norm[1] for obj in shown)


def test_random_orders_differ_between_epochs_and_copies_but_repeat_exactly(jsonl):
    some = samples(jsonl, object_ordering="random", orders_per_sample=2)
    again = samples(jsonl, object_ordering="random", orders_per_sample=2)
    assert len(some) == 8

    def orders(source):
        return [tuple(o.norm[0] for o in source.get(i, epoch).record.objects) for epoch in range(12) for i in range(8)]

    assert orders(some) == orders(again)
    assert len({o for o in orders(some) if len(o) == 3}) == 6


def test_federated_prompts_name_what_is_present_or_known_absent(jsonl):
    some = samples(jsonl, category_ratio=1.0, negatives=10)
    shown = drawn_samples(some)
    assert set(shown[1].categories) == {"cat", "dog", "cow", "car"}
    assert set(shown[2].categories) == {"cat", "bus"} and shown[2].record.objects == []
    assert set(shown[3].categories) == {"cow", "car", "cat"}
    assert [o.desc for o in shown[3].record.objects if o.desc == "dog"] == []
    assert set(shown[4].categories) == {"bus"}


def test_exhaustive_annotations_make_every_other_category_absent(jsonl):
    shown = drawn_samples(samples(jsonl, exhaustive=True, category_ratio=1.0, negatives=10))
    assert set(shown[4].categories) == set(NAMES.values())
    assert "dog" not in shown[3].categories


def test_negatives_are_limited_and_the_ratio_is_kept(jsonl):
    some = samples(jsonl, exhaustive=True, category_ratio=0.5, negatives=1)
    seen = [some.get(i, epoch) for epoch in range(100) for i in range(4)]
    named = [s for s in seen if s.categories]
    assert 0.4 < len(named) / len(seen) < 0.6
    assert all(len(s.categories) == len({o.desc for o in s.record.objects}) + 1 for s in named)


def verified(some):
    """Descriptions of which an unmatched object is certainly wrong, by image."""
    return {n: some.verified_descriptions(sample) for n, sample in drawn_samples(some).items()}


def test_only_known_categories_are_verified_in_open_prompts(jsonl):
    federated = verified(samples(jsonl))
    assert federated == {1: {"cat", "dog", "cow", "car"}, 2: {"cat", "bus"}, 3: {"cow", "car", "cat"}, 4: {"bus"}}
    everything = set(NAMES.values())
    assert verified(samples(jsonl, exhaustive=True)) == {
        1: everything,
        2: everything,
        3: everything - {"dog"},
        4: everything,
    }


def test_prompts_that_name_categories_or_a_phrase_verify_every_description(jsonl, with_phrases):
    assert set(verified(samples(jsonl, category_ratio=1.0)).values()) == {None}
    some = samples(with_phrases, phrase_ratio=1.0)
    assert {some.verified_descriptions(s) is None for s in drawn_samples(some).values() if s.phrase} == {True}


def test_without_the_table_of_the_records_only_annotated_categories_are_verified(jsonl):
    mixture, options = single_file_mixture(jsonl), SampleOptions()
    expected = {1: {"cat", "dog"}, 2: set(), 3: {"cow", "car"}, 4: {"bus"}}
    assert verified(Samples(mixture, "token", options, None)) == expected
    other = CategoryTable({1: "tin", 2: "box", 3: "jar", 5: "cup"}, True)
    found = verified(Samples(mixture, "token", options, other))
    assert [found[n] for n in (1, 3, 4)] == [expected[n] for n in (1, 3, 4)]


def test_the_table_of_a_source_verifies_its_records(jsonl, tmp_path):
    table = tmp_path / "own.json"
    io.write_json(table, CategoryTable(NAMES, False))
    source = MixtureSource(jsonl=str(jsonl), categories=str(table))
    some = Samples(MixtureConfig(sources={"own": source}), "token", SampleOptions(), None)
    some.read_tables()
    assert verified(some)[2] == {"cat", "bus"}


def test_category_prompts_need_the_table(jsonl):
    with pytest.raises(DataError, match="category table"):
        Samples(single_file_mixture(jsonl), "token", SampleOptions(category_ratio=0.5), None)


def test_a_prompt_names_at_most_max_named_categories_and_its_answer_lists_no_others(jsonl):
    one = samples(jsonl, exhaustive=True, category_ratio=1.0, negatives=1, max_named=1)
    drawn = [drawn_samples(one, epoch)[1] for epoch in range(40)]
    assert {tuple(sample.categories) for sample in drawn} >= {("cat",), ("dog",)}
    for sample in drawn:
        wanted = [name for name in ("cat", "dog", "cat") if name in sample.categories]
        assert sorted(obj.desc for obj in sample.record.objects) == sorted(wanted)


def test_some_prompts_name_only_what_is_known_to_be_absent_and_have_an_empty_answer(jsonl):
    some = samples(jsonl, category_ratio=1.0, negatives=2, absent_only=0.5)
    seen = [some.get(i, epoch) for epoch in range(200) for i in range(4)]
    of_first = [s for s in seen if s.record.metadata.image_id == 1]
    empty = [s for s in of_first if not s.record.objects]
    assert 0.4 < len(empty) / len(of_first) < 0.6
    assert {frozenset(s.categories) for s in empty} == {frozenset({"cow", "car"})}
    assert all(len(s.record.objects) == 3 for s in of_first if s.record.objects)
    of_last = [s for s in seen if s.record.metadata.image_id == 4]  # no category is known to be absent
    assert all(s.categories == ["bus"] and len(s.record.objects) == 1 for s in of_last)


def test_by_category_sorts_within_each_category(jsonl):
    shown = drawn_samples(samples(jsonl, object_ordering="by_category"))[1].record.objects
    assert [obj.category_id for obj in shown] == [1, 1, 2]
    assert [obj.norm[1] for obj in shown[:2]] == sorted(obj.norm[1] for obj in shown[:2])


def test_only_the_chosen_categories_are_named(jsonl):
    some = samples(jsonl, exhaustive=True, category_ratio=1.0, named_categories=("dog", "bus"))
    shown = drawn_samples(some)[1]
    assert sorted(shown.categories) == ["bus", "dog"]
    assert [obj.desc for obj in shown.record.objects] == ["dog"]


def test_categories_that_may_not_be_named_do_not_count_as_negatives(jsonl):
    chosen = {"category_ratio": 1.0, "negatives": 1, "named_categories": ("dog", "bus")}
    some = samples(jsonl, exhaustive=True, **chosen)
    seen = [some.get(i, epoch) for epoch in range(20) for i in range(4)]
    assert all(set(s.categories) == {"bus", "dog"} for s in seen if s.record.metadata.image_id == 1)


@pytest.fixture
def with_phrases(tmp_path):
    """Two images with three phrases each, about one, both and none of their objects; and an image without phrases."""
    rows = []
    for number in (1, 2):
        asked = [Phrase(f"one of {number}", [1]), Phrase(f"all of {number}", [0, 1]), Phrase(f"none of {number}", [])]
        rows.append(msgspec.structs.replace(record(number, [1, 2]), phrases=asked))
    io.write_jsonl(tmp_path / "p.jsonl", [*rows, record(3, [4])])
    return tmp_path / "p.jsonl"


def test_a_sample_asks_for_the_objects_of_one_phrase(with_phrases):
    some = samples(with_phrases, phrase_ratio=1.0)
    expected = {"one": 1, "all": 2, "none": 0}
    for epoch in range(3):
        for number, sample in drawn_samples(some, epoch).items():
            if number == 3:
                assert sample.phrase is None and [o.desc for o in sample.record.objects] == ["car"]
                continue
            assert sample.phrase.endswith(f"of {number}") and sample.categories is None and not sample.record.phrases
            objects = sample.record.objects
            assert [o.desc for o in objects] == [sample.phrase] * expected[sample.phrase.split()[0]]
            assert [o.norm[1] for o in objects] == sorted(o.norm[1] for o in objects)


@pytest.mark.parametrize("repeats", [1, 3])
def test_no_phrase_is_repeated_before_all_others_were_used(repeats, with_phrases):
    some = samples(with_phrases, phrase_ratio=1.0, orders_per_sample=repeats, object_ordering="random")
    for first in range(0, 6, 3):
        epochs = range(first // repeats, (first + 3) // repeats)
        seen = [some.get(i, epoch) for epoch in epochs for i in range(len(some))]
        for number in (1, 2):
            texts = [s.phrase for s in seen if s.record.metadata.image_id == number]
            assert sorted(texts) == [f"{kind} of {number}" for kind in ("all", "none", "one")]


def test_the_ratio_of_phrases_is_kept_and_other_samples_do_not_change(with_phrases):
    some, plain = samples(with_phrases, phrase_ratio=0.5, category_ratio=0.5), samples(with_phrases, category_ratio=0.5)
    drawn = [(some.get(i, epoch), plain.get(i, epoch)) for epoch in range(200) for i in range(3)]
    possible = [pair for pair in drawn if pair[0].record.metadata.image_id != 3]
    asked = [pair for pair in possible if pair[0].phrase]
    assert 0.4 < len(asked) / len(possible) < 0.6
    assert all(a == b for a, b in drawn if a.phrase is None) and not any(b.phrase for _, b in drawn)
