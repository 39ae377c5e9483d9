"""The diagnostic of image use: a model that sees the image, one that does not, and the log probabilities themselves."""

from __future__ import annotations

import msgspec
import pytest
import torch
from inference_helpers import NAMES, images, objects, taught_checkpoint
from PIL import Image

from coordexp.answers.render import PromptStyle, render_answer
from coordexp.datasets.categories import Category
from coordexp.geometry.slices import SliceOptions
from coordexp.inference.image_use import answer_swapped_images, measure_image_use, score_swapped_images
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict_records
from coordexp.inference.predictor import Predictor
from coordexp.records import Metadata, Record, coord_bin
from coordexp.runtime.errors import ConfigError, DataError

STYLE = PromptStyle()
TABLE = [Category(id=n, name=name) for n, name in enumerate(NAMES)]
BLACK = Image.new("RGB", (64, 64))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_checkpoint(
        taught_checkpoint(STYLE), PredictOptions(temperature=0.5, max_new_tokens=120), STYLE
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> tuple[list[Record], object]:
    folder = tmp_path_factory.mktemp("images")
    found = []
    for n, image in enumerate(images()):
        image.save(folder / f"{n}.png")
        facts = Metadata(n, image.width, image.height)
        found.append(Record([f"{n}.png"], image.width, image.height, "token", objects(n), facts))
    return found, folder


def test_a_model_that_learned_the_images_uses_them(predictor, records):
    use = measure_image_use(predictor, *records)
    assert use.images == 5 and use.coordinates == sum(4 * len(record.objects) for record in records[0])
    assert use.uses_image and use.right > use.other and use.right > use.blank


def test_the_log_probability_is_that_of_a_plain_forward_pass(predictor, records):
    total, count = 0.0, 0
    for record, image in zip(records[0], images(), strict=True):
        text = predictor.prompt_text() + render_answer(record.objects, STYLE)
        inputs = predictor.encode([image], [text])
        with torch.inference_mode():
            logits = predictor.model(**inputs).logits[0].float()
        slots = [
            n
            for n, token in enumerate(inputs["input_ids"][0].tolist())
            if predictor.ids.start <= token <= predictor.ids.end
        ]
        bins = [coord_bin(token) for obj in record.objects for token in obj.coords]
        for slot, k in zip(slots, bins, strict=True):
            row = (logits[slot - 1, predictor.ids.start : predictor.ids.end + 1] / 0.5).log_softmax(-1)
            total, count = total + float(row[k]), count + 1
    assert measure_image_use(predictor, *records).right == pytest.approx(total / count, abs=1e-4)


def test_a_model_that_ignores_the_image_is_reported(predictor, records, monkeypatch):
    encode = predictor.encode
    monkeypatch.setattr(predictor, "encode", lambda images, texts: encode([images[0]] * len(images), texts))
    use = measure_image_use(predictor, *records)
    assert use.gain == pytest.approx(0, abs=1e-4) and not use.uses_image


def with_geometry(record: Record) -> Record:
    """The record with the exact geometry of its tokens, and categories of `TABLE`."""
    objects = [
        msgspec.structs.replace(
            obj, category_id=NAMES.index(obj.desc), norm=[coord_bin(token) / 999 for token in obj.coords]
        )
        for obj in record.objects
    ]
    return msgspec.structs.replace(record, objects=objects)


def test_answers_of_a_model_that_learned_the_images_change_with_them(predictor, records):
    rows, folder = [with_geometry(record) for record in records[0]], records[1]
    found = answer_swapped_images(predictor, rows[:3], folder)
    plain = predict_records(predictor, rows[:3], folder)
    assert [right.token_ids for _, (right, _, _) in found] == [row.token_ids for row in plain]
    use = score_swapped_images(found, TABLE)
    assert use.images == 3 and use.uses_image and use.right > use.other


def test_swapped_images_are_predicted_in_slices_like_the_others(predictor, records, monkeypatch):
    options = msgspec.structs.replace(predictor.options, slices=SliceOptions(grids=((2, 1),)))
    monkeypatch.setattr(predictor, "options", options)
    rows, folder = [with_geometry(record) for record in records[0]][:2], records[1]
    found = answer_swapped_images(predictor, rows, folder)
    assert [len(row.slices) for _, swapped in found for row in swapped] == [2] * 6
    plain = predict_records(predictor, rows, folder)
    assert [right.token_ids for _, (right, _, _) in found] == [row.token_ids for row in plain]


def test_answers_that_do_not_change_with_the_image_are_reported(predictor, records, monkeypatch):
    process = predictor._process
    monkeypatch.setattr(predictor, "_process", lambda images, texts: process([BLACK] * len(images), texts))
    use = score_swapped_images(answer_swapped_images(predictor, *records), TABLE)
    assert use.agreement == 1 and not use.uses_image and use.right == use.other == use.blank


def test_only_objects_that_the_prompt_names_are_in_the_answer(records):
    options = PredictOptions(protocol="all_categories", chunk=1)
    predictor = Predictor.from_checkpoint(taught_checkpoint(STYLE), options, STYLE)
    asked = measure_image_use(predictor, *records, categories=NAMES[:2])
    named = [sum(obj.desc in NAMES[:2] for obj in record.objects) for record in records[0]]
    assert asked.coordinates == 4 * sum(named) > 0 and asked.images == sum(map(bool, named)) < 5


def test_what_cannot_be_measured_is_refused(predictor, records):
    with pytest.raises(DataError, match="too few images with objects"):
        measure_image_use(predictor, records[0][:1], records[1])
    integers = Predictor(
        predictor.model, predictor.processor, None, PredictOptions(), PromptStyle(coordinates="integer")
    )
    with pytest.raises(ConfigError, match="text integers"):
        measure_image_use(integers, *records)
