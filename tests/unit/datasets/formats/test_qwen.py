"""Conversations with boxes in the answers: three declared units, JSON lists and lines; bad entries."""

import json

import pytest
from format_cases import boxes, image_folder, json_lines, provided, skipped

from coordexp.runtime.errors import ConfigError, DataError

ENTRY = {"format": "qwen", "image_dirs": {"train": ["images"]}, "box_unit": "norm1000"}


def entry(answer, image="a.jpg"):
    turns = [{"from": "human", "value": "<image>\nLocate all animals."}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns}


def cat(*box, label="cat"):
    return json.dumps([{"bbox_2d": list(box), "label": label}])


@pytest.fixture
def read(tmp_path):
    image_folder(tmp_path)

    def read(*entries, name="train.json", **options):
        data = json.dumps(entries, indent=1).encode() if name.endswith(".json") else json_lines(*entries)
        (tmp_path / name).write_bytes(data)
        return provided(tmp_path, {**ENTRY, "annotations": {"train": name}, **options})

    return read


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_lists_and_lines_are_read(name, read):
    content = read(entry(cat(0, 0, 500, 1000)), entry("[]", "c.png"), name=name)
    assert boxes(content) == {"a.jpg": [("cat", (0, 0, 80, 120))], "c.png": []}


UNITS = {"norm1000": (250, 500, 500, 750), "pixels": (40, 60, 80, 90), "resized_pixels": (42, 56, 84, 84)}


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_is_declared(unit, read):
    content = read(entry(cat(*UNITS[unit])), box_unit=unit)  # Qwen2.5-VL resizes 160x120 pixels to 168x112
    assert boxes(content)["a.jpg"] == [("cat", (40, 60, 40, 30))]


def test_the_limits_of_the_resized_image_are_declared(read):
    limits = {"factor": 32, "min_pixels": 1024, "max_pixels": 32 * 32 * 4}
    content = read(entry(cat(32, 0, 64, 32)), box_unit="resized_pixels", **limits)  # resized to 64x32
    assert boxes(content)["a.jpg"] == [("cat", (80, 0, 80, 120))]


@pytest.mark.parametrize(
    "answer",
    [
        '```json\n[{"bbox_2d": [0, 0, 500, 500], "label": "cat"}]\n```',
        '{"bbox_2d": [0, 0, 500, 500], "label": "cat"}',
        ' [{"label": "cat", "bbox_2d": [0, 0, 500, 500], "colour": "black"}] ',
    ],
    ids=["fenced", "one object", "other keys"],
)
def test_usual_answers_are_read(answer, read):
    assert boxes(read(entry(answer)))["a.jpg"] == [("cat", (0, 0, 80, 60))]


def test_messages_are_read_like_conversations_and_the_label_key_is_declared(read):
    parts = [{"type": "text", "text": '[{"bbox_2d": [0, 0, 500, 500], "desc": "cat"}]'}]
    value = {"images": ["a.jpg"], "messages": [{"role": "assistant", "content": parts}]}
    assert boxes(read(value, label_key="desc"))["a.jpg"] == [("cat", (0, 0, 80, 60))]


def test_answers_of_several_turns_are_joined(read):
    value = entry(cat(0, 0, 500, 500))
    value["conversations"] += [
        {"from": "human", "value": "And dogs?"},
        {"from": "gpt", "value": cat(0, 0, 9, 9, label="dog")},
    ]
    assert [name for name, _ in boxes(read(value))["a.jpg"]] == ["cat", "dog"]


BAD = {
    "another unit": (entry(cat(0, 0, 1280, 5)), "annotation", "box outside its unit", r"answer\[0\]\.bbox_2d"),
    "fractions": (entry(cat(0.1, 0.2, 0.3, 0.4)), "annotation", "box within 0..1", r"answer\[0\]\.bbox_2d"),
    "an answer without boxes": (entry("A cat."), "image", "no boxes", "A cat"),
    "no answer": ({"image": "a.jpg", "conversations": []}, "image", "no boxes", ""),
    "a broken answer": (entry('[{"bbox_2d": [1, 2, 3'), "image", "answer is not JSON", "bbox_2d"),
    "an object without a box": (
        entry('[{"bbox_2d": [1, 2, 3, 4], "label": "c"}, {"label": "d"}]'),
        "annotation",
        "invalid box",
        "",
    ),
    "no label": (entry('[{"bbox_2d": [1, 2, 3, 4]}]'), "annotation", "missing category", r"answer\[0\]\.label"),
    "NaN": (entry('[{"bbox_2d": [1, NaN, 3, 4], "label": "cat"}]'), "annotation", "non-finite box", "nan"),
    "swapped corners": (entry(cat(5, 2, 3, 4)), "annotation", "swapped corners", ""),
    "two images": (
        {"images": ["a.jpg", "c.png"], "messages": []},
        "image",
        "invalid entry",
        "expected one image, found 2",
    ),
    "no image": ({"conversations": []}, "image", "invalid entry", "None"),
    "a missing image": (entry("[]", "z.jpg"), "image", "missing image", "z"),
    "turns that are text": ({"image": "a.jpg", "conversations": ["hello"]}, "image", "invalid entry", "hello"),
    "text that is a number": (entry(3), "image", "invalid entry", "3"),
    "an entry that is text": ("a.jpg", "image", "invalid entry", "str"),
    "two entries for one image": (entry("[]", "c.png"), "image", "several entries for one image", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_an_error_with_its_line_or_a_counted_skip(case, read):
    bad, kind, reason, words = BAD[case]
    good = entry(cat(0, 0, 10, 10), "c.png")
    with pytest.raises(DataError, match=rf"train\.jsonl:2: {reason}(.|\n)*{words}"):
        read(good, bad, name="train.jsonl")
    content = read(good, bad, name="train.jsonl", on_bad="skip")
    assert skipped(content) == [(kind, reason, 2)]
    assert boxes(content)["c.png"] == [("cat", (0, 0, 0.64, 0.64))]


def test_a_bad_element_of_a_list_is_an_error_with_its_line(read):
    with pytest.raises(DataError, match=r"train\.json:15: missing image"):
        read(entry("[]"), entry("[]", "z.jpg"))


def test_fractions_that_are_declared_as_thousandths_are_an_error(read):
    with pytest.raises(DataError, match=r"all 1 boxes are within .* of the declared unit: they are fractions"):
        read(entry(cat(0.1, 0.2, 0.3, 0.4)))


def test_the_unit_must_be_declared(read):
    with pytest.raises(ConfigError, match="box_unit"):
        read(entry("[]"), box_unit=None)


def test_limits_that_contradict_each_other_are_an_error(read):
    with pytest.raises(ConfigError, match="min_pixels <= max_pixels"):
        read(entry("[]"), min_pixels=5000, max_pixels=4000)
