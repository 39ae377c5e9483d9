"""The template: prompts equal those of inference, and targets equal the records."""

import msgspec
import pytest
import torch
from template_cases import encoder_of

from coordexp.answers import render
from coordexp.answers.formats import format_of
from coordexp.losses.options import LossOptions
from coordexp.losses.targets import IGNORE
from coordexp.modeling import tiny, vocab
from coordexp.modeling.chat_template import prompt_frame
from coordexp.modeling.families import DEFAULT_FAMILY, FAMILIES
from coordexp.modeling.vocab import coord_ids
from coordexp.recipe import CoordTokens
from coordexp.records import read_records
from coordexp.runtime import io
from coordexp.runtime.errors import DataError
from coordexp.sequence_options import PrefixOptions


@pytest.fixture(scope="module")
def encoder(shapes_data, tiny_model):
    """Rows of the shapes under the default recipe."""
    with encoder_of(tiny_model, train_jsonl=str(shapes_data / "train.coord.jsonl")) as pair:
        yield pair


def encode_one(model, jsonl, **custom):
    with encoder_of(model, train_jsonl=str(jsonl), **custom) as (encode, rows):
        return encode.encode(dict(rows[0]))


def sample(row):
    from coordexp.training.ms_swift.dataset import sample_of

    return sample_of(dict(row))


def test_the_prompt_is_token_for_token_that_of_inference(encoder, tiny_model):
    from PIL import Image
    from transformers import AutoProcessor

    encode, rows = encoder
    processor = AutoProcessor.from_pretrained(tiny_model)
    for row in rows:
        encoded, (record, path, *_) = encode.encode(dict(row)), sample(row)
        text = processor.apply_chat_template(render.hf_chat(render.PromptStyle()), add_generation_prompt=True)
        with Image.open(path.parent / record.images[0]) as image:
            expected = processor(text=[text], images=[image.convert("RGB")], do_resize=False, return_tensors="pt")
        length = expected["input_ids"].shape[1]
        assert encoded["input_ids"][:length] == expected["input_ids"][0].tolist()
        assert all(label == IGNORE for label in encoded["labels"][:length])
        assert encoded["labels"][length] != IGNORE
        assert torch.equal(encoded["image_grid_thw"], expected["image_grid_thw"])
        assert torch.allclose(encoded["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("family", [name for name in FAMILIES.names() if name != DEFAULT_FAMILY])
def test_the_prompt_of_every_family_is_that_of_inference(family, shapes_data, tmp_path):
    """Also where the chat template starts a block of reasoning, which stays empty and is not supervised."""
    tiny.build(tmp_path / "base", 1, family=family, layers=2, hidden=32, vision_layers=1, deepstack=(0,))
    vocab.expand(tmp_path / "base", tmp_path / "model")
    with encoder_of(tmp_path / "model", train_jsonl=str(shapes_data / "train.coord.jsonl")) as (encode, rows):
        encoded = encode.encode(dict(rows[0]))
        before, after = prompt_frame(encode.processor)
        expected = before + render.user_text(render.PromptStyle()) + after
        assert ("<think>" in expected) == family.startswith("qwen3_5")
        answer = next(n for n, label in enumerate(encoded["labels"]) if label != IGNORE)
        pad = "<|image_pad|>"
        ids = [i for i in encoded["input_ids"][:answer] if i != encode.image_token_id]
        assert ids == encode.tokenizer.encode(expected.replace(pad, ""), add_special_tokens=False)
        assert encode.tokenizer.decode(encoded["input_ids"][answer:]).startswith('{"objects": [')


@pytest.mark.parametrize("answer_format", ["grouped", "box_tokens"])
@pytest.mark.parametrize("set_targets", ["none", "remaining"])
def test_answers_in_every_format(shapes_data, tiny_model, answer_format, set_targets):
    """Also an answer without objects; the labels are those of inference, and targets are in the order of the answer."""
    custom = {"answer_format": answer_format, "loss": LossOptions(set_targets=set_targets), "object_ordering": "random"}
    style = render.PromptStyle(answer_format=answer_format)
    with encoder_of(tiny_model, train_jsonl=str(shapes_data / "train.coord.jsonl"), **custom) as (encode, rows):
        for row in rows:
            encoded, record = encode.encode(dict(row)), sample(row).record
            objects = format_of(style).arrange(record.objects)
            labels = [label for label in encoded["labels"] if label != IGNORE]
            assert encode.tokenizer.decode(labels).rstrip() == render.render_answer(objects, style) + "<|im_end|>"
            assert encoded["coord_targets"].coords == [value for obj in objects for value in obj.norm]
        empty = sample(row)._replace(record=msgspec.structs.replace(record, objects=[]))
        labels = [label for label in encode.encode_sample(empty)["labels"] if label != IGNORE]
        assert encode.tokenizer.decode(labels).rstrip() == render.render_answer([], style) + "<|im_end|>"


def test_exactly_the_answer_is_supervised(encoder):
    encode, rows = encoder
    encoded = encode.encode(dict(rows[0]))
    supervised = [i for i, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label != IGNORE]
    answer = render.render_answer(sample(rows[0]).record.objects, render.PromptStyle())
    assert encode.tokenizer.decode(supervised).rstrip() == answer + "<|im_end|>"


def test_collated_targets_are_in_the_order_of_the_labels(encoder):
    from coordexp.training.collate import as_targets

    encode, rows = encoder
    batch = encode.data_collator([encode.encode(dict(row)) for row in rows.select(range(5))])
    start = encode.tokenizer.convert_tokens_to_ids("<|coord_0|>")
    slots = batch["labels"][(batch["labels"] >= start) & (batch["labels"] < start + 1000)] - start
    boxes = [obj.norm for row in rows.select(range(5)) for obj in sample(row).record.objects]
    targets = as_targets(batch["coord_targets"])
    assert torch.allclose(targets.coords, torch.tensor(boxes).flatten())
    assert ((slots / 999 - targets.coords).abs() <= 0.5 / 999 + 1e-6).all()
    assert torch.allclose(targets.coords[targets.boxes], torch.tensor(boxes))
    assert targets.soft is None


def test_pixel_files_are_quantised_if_the_recipe_says_so(encoder, shapes_data, tiny_model):
    encode, rows = encoder
    expected = [encode.encode(dict(row))["input_ids"] for row in rows.select(range(3))]
    pixels = {"train_jsonl": str(shapes_data / "train.jsonl"), "coord_tokens": CoordTokens(skip_bbox_norm=False)}
    with encoder_of(tiny_model, **pixels) as (again, others):
        assert [again.encode(dict(row))["input_ids"] for row in others.select(range(3))] == expected


def test_slot_targets_are_in_the_units_of_the_codec(shapes_data, tiny_model):
    """The unrounded target is in the bin of the answer's token, also if bins are fractions of size - 1."""
    encoded = encode_one(
        tiny_model,
        shapes_data / "train.jsonl",
        coord_tokens=CoordTokens(skip_bbox_norm=False),
        emit_norm="norm1000_legacy",
    )
    start = coord_ids(tiny_model).start
    bins = [label - start for label in encoded["labels"] if start <= label < start + 1000]
    targets = [coord * 999 for coord in encoded["coord_targets"].coords]
    assert len(bins) == len(targets) > 0
    assert all(abs(k - c) <= 1 for k, c in zip(bins, targets, strict=True))


def test_integers_carry_no_coordinate_slots(shapes_data, tiny_model):
    encoded = encode_one(
        tiny_model, shapes_data / "train.coord.jsonl", coord_tokens=CoordTokens(enabled=False, skip_bbox_norm=True)
    )
    assert encoded["coord_targets"].coords == []
    assert coord_ids(tiny_model).start > max(encoded["input_ids"])


def test_an_image_of_another_size_is_refused(shapes_data, tiny_model, tmp_path):
    from PIL import Image

    record = next(read_records(shapes_data / "train.coord.jsonl", "token"))
    record.images = ["other.png"]
    Image.new("RGB", (128, 96)).save(tmp_path / "other.png")
    io.write_jsonl(tmp_path / "other.jsonl", [record])
    with pytest.raises(DataError, match="encoded as 128x96, but the record has 96x96"):
        encode_one(tiny_model, tmp_path / "other.jsonl")


def test_a_file_in_the_other_coordinate_space_is_refused(shapes_data, tiny_model):
    with pytest.raises(DataError, match="expected 'token', found 'pixel'"):
        encode_one(tiny_model, shapes_data / "train.jsonl")


def test_a_description_that_contains_a_coordinate_token_is_refused(shapes_data, tiny_model, tmp_path):
    record = next(read_records(shapes_data / "train.coord.jsonl", "token"))
    record.images = [str(shapes_data / record.images[0])]
    record.objects[0].desc = "a <|coord_5|> trap"
    io.write_jsonl(tmp_path / "trap.jsonl", [record])
    with pytest.raises(DataError, match=r"contains '<[|]'"):
        encode_one(tiny_model, tmp_path / "trap.jsonl")


def slow_branches(encode, record, style, ids):
    """By definition: encode the answer with every remaining object moved to the front, compare token by token."""
    text, slots, start = {}, {}, 0
    objects = record.objects
    for i in range(len(objects)):
        orders = [
            [*objects[:i], objects[j], *(o for k, o in enumerate(objects[i:], i) if k != j)]
            for j in range(i, len(objects))
        ]
        answers = [encode._tokenize(render.render_answer(order, style)) for order in orders]
        first = answers[0]
        end = next(p for p in range(start, len(first)) if ids.start <= first[p] <= ids.end)
        alive = answers
        for position in range(start, end + 1):
            options = [a[position] for a in alive]
            if len(set(options)) > 1 or (position == end and len(options) > 1):
                target = slots if position == end else text
                target[position] = {t: options.count(t) / len(options) for t in options}
            alive = [a for a in alive if a[position] == first[position]]
        start = [p for p in range(len(first)) if ids.start <= first[p] <= ids.end][4 * (i + 1) - 1] + 1
    return text, slots


@pytest.mark.parametrize("order", ["desc_first", "geometry_first"])
def test_branch_targets_are_spread_over_the_remaining_objects(shapes_data, tiny_model, order):
    custom = {"object_ordering": "random", "loss": LossOptions(set_targets="remaining"), "object_field_order": order}
    ids, counts = coord_ids(tiny_model), [0, 0]
    with encoder_of(tiny_model, train_jsonl=str(shapes_data / "train.coord.jsonl"), **custom) as (encode, rows):
        for row in rows:
            encoded = encode.encode(dict(row))
            branches = encoded["coord_targets"].branches
            style = render.PromptStyle(object_field_order=order)
            text, slots = slow_branches(encode, sample(row).record, style, ids)
            got = {}
            for position, token, weight in branches.text:
                got.setdefault(position, {})[token] = pytest.approx(weight)
            assert got == text
            answer = [label for label in encoded["labels"] if label != IGNORE]
            positions = [p for p, label in enumerate(answer) if ids.start <= label <= ids.end]
            got = {}
            for slot, bins, _, weight in branches.slots:
                options = got.setdefault(positions[slot], {})
                options[ids.start + bins] = options.get(ids.start + bins, 0) + weight
            assert {p: {t: pytest.approx(w) for t, w in o.items()} for p, o in got.items()} == slots
            counts[0] += len(text)
            counts[1] += len(slots)
        batch = encode.data_collator([encode.encode(dict(row)) for row in rows.select(range(6))])
        assert {"text_position", "slot_slot"} <= set(batch["coord_targets"])
    assert (counts[0] > 0) == (order == "desc_first") and counts[1] > 0


def test_each_source_of_a_mixture_uses_its_own_prompt(shapes_data, tiny_model, tmp_path):
    files = {name: str(shapes_data / f"{name}.coord.jsonl") for name in ("train", "val")}
    sources = {"a": {"jsonl": files["train"]}, "b": {"jsonl": files["val"], "ratio": 0.5, "user_prompt": "Find parts."}}
    io.write_json(tmp_path / "mix.json", {"sources": sources})
    with encoder_of(tiny_model, fusion_config=str(tmp_path / "mix.json")) as (encode, rows):
        assert len(rows) == 24 + 4
        prompts = [encode.tokenizer.decode(encode.encode(dict(row))["input_ids"]) for row in rows]
        assert sum("Find parts." in text for text in prompts) == 4
        assert sum(render.OPEN_PROMPT in text for text in prompts) == 24


def encoded_with(prefix, shapes_data, tiny_model):
    """(encoded with these options, encoded without, tokenizer) of the first row with two objects."""
    jsonl = str(shapes_data / "train.coord.jsonl")
    with encoder_of(tiny_model, train_jsonl=jsonl) as (encode, rows):
        row = next(dict(row) for row in rows if len(sample(row).record.objects) == 2)
        plain = encode.encode(row)
    with encoder_of(tiny_model, train_jsonl=jsonl, prefix=PrefixOptions(**prefix)) as (encode, _):
        return encode.encode(row), plain, encode.tokenizer


@pytest.mark.parametrize("answer_format", ["grouped", "box_tokens"])
def test_a_perturbed_prefix_in_a_format_that_shares_descriptions(answer_format, shapes_data, tiny_model):
    """A group is opened again for an object that was missing from it."""
    prefix = PrefixOptions(continued=1.0, dropped=0.5, swapped=0.5, repeated=0.5, noise=0.5)
    custom = {"answer_format": answer_format, "prefix": prefix}
    with encoder_of(tiny_model, train_jsonl=str(shapes_data / "train.coord.jsonl"), **custom) as (encode, rows):
        for row in rows:
            encoded = encode.encode(dict(row))
            read = len(encode.coordinates(encoded["input_ids"])) + encoded["input_ids"].count(encode.wildcard)
            taught = len(encode.coordinates(encoded["labels"]))
            assert taught == len(encoded["coord_targets"].coords) <= read
            labels = [label for label in encoded["labels"] if label != IGNORE]
            assert encode.tokenizer.decode(labels).rstrip().endswith("<|im_end|>")


@pytest.mark.parametrize("prefix", [{"noise": 1.0}, {"wildcard": 1.0}], ids=["noise", "wildcard"])
def test_only_what_is_read_of_the_coordinates_changes(prefix, shapes_data, tiny_model):
    perturbed, plain, tokenizer = encoded_with(prefix, shapes_data, tiny_model)
    ids = coord_ids(tokenizer)
    assert perturbed["labels"] == plain["labels"]
    assert perturbed["coord_targets"] == plain["coord_targets"]
    pairs = list(zip(perturbed["input_ids"], plain["input_ids"], strict=True))
    changed = [(a, b) for a, b in pairs if a != b]
    assert changed and all(ids.start <= b <= ids.end for _, b in changed)
    if "wildcard" in prefix:
        assert len(changed) == 8 and {a for a, _ in changed} == {ids.wildcard}
    else:
        assert all(ids.start <= a <= ids.end for a, _ in changed)


def test_a_given_prefix_is_read_but_not_taught(shapes_data, tiny_model):
    options = {"continued": 1.0, "dropped": 0.0, "swapped": 0.0, "repeated": 0.0}
    perturbed, plain, tokenizer = encoded_with(options, shapes_data, tiny_model)
    assert perturbed["input_ids"] == plain["input_ids"]
    taught = [token for token in perturbed["labels"] if token != IGNORE]
    rest = len(perturbed["coord_targets"].boxes)
    assert rest < 2
    assert plain["labels"][-len(taught) :] == taught
    assert tokenizer.decode(taught).startswith("]")
    assert perturbed["coord_targets"].supervised == len(taught)
    assert perturbed["coord_targets"].coords == plain["coord_targets"].coords[4 * (2 - rest) :]


def test_the_fractions_of_the_prefix_follow_the_epochs(shapes_data, tiny_model):
    from coordexp.training.ms_swift import dataset

    prefix = PrefixOptions(wildcard=1.0, start=0.5, full=0.5)
    with encoder_of(tiny_model, train_jsonl=str(shapes_data / "train.coord.jsonl"), prefix=prefix) as (encode, rows):
        hidden = []
        for progress in (0.25, 0.5):
            dataset.set_epoch(0, progress)
            hidden.append(encode.encode(dict(rows[0]))["input_ids"].count(encode.wildcard))
        dataset.set_epoch(0)
    assert hidden[0] == 0 and hidden[1] > 0
