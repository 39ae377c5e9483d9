"""What ms-swift encodes is what the records say, and what inference will ask."""

import json

import pytest
import torch

from coordexp import io, prompt
from coordexp.errors import DataError
from coordexp.loss.objective import IGNORE
from coordexp.recipe import Custom


@pytest.fixture(scope="module")
def encoder(shapes_data, tiny_model):
    """The registered template on a real processor, with rows of the training file."""
    import msgspec
    from swift.model import get_processor
    from swift.template import get_template
    from transformers import AutoModelForImageTextToText

    from coordexp.swift import dataset, loader, settings, template

    custom = Custom(train_jsonl=str(shapes_data / "train.coord.jsonl"), val_jsonl=str(shapes_data / "val.coord.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(settings.VARIABLE, json.dumps(msgspec.to_builtins(custom)))
        patch.setenv("IMAGE_MIN_TOKEN_NUM", "1")
        settings.custom_section.cache_clear()
        for module in (dataset, template, loader):
            module.register()
        processor = get_processor(str(tiny_model), model_type=loader.DENSE)
        encode = get_template(processor, template_type=template.NAME, truncation_strategy="raise", max_length=2048)
        encode.set_mode("train")
        encode.model = AutoModelForImageTextToText.from_pretrained(tiny_model)
        rows = dataset._Loader().load(dataset_meta=type("Meta", (), {"dataset_name": dataset.TRAIN}))
        yield encode, rows, shapes_data
        settings.custom_section.cache_clear()


def records(folder):
    return list(io.read_records(folder / "train.coord.jsonl", "token"))


def test_the_prompt_is_token_for_token_that_of_inference(encoder, tiny_model):
    from PIL import Image
    from transformers import AutoProcessor

    encode, rows, folder = encoder
    processor = AutoProcessor.from_pretrained(tiny_model)
    style = prompt.PromptStyle()
    for row, record in zip(rows, records(folder), strict=True):
        encoded = encode.encode(dict(row))
        text = processor.apply_chat_template(prompt.hf_chat(style), add_generation_prompt=True)
        with Image.open(folder / record.images[0]) as picture:
            asked = processor(text=[text], images=[picture.convert("RGB")], do_resize=False, return_tensors="pt")
        length = asked["input_ids"].shape[1]
        assert encoded["input_ids"][:length] == asked["input_ids"][0].tolist()
        assert all(label == IGNORE for label in encoded["labels"][:length])
        assert encoded["labels"][length] != IGNORE
        assert torch.equal(encoded["image_grid_thw"], asked["image_grid_thw"])
        assert torch.allclose(encoded["pixel_values"], asked["pixel_values"])


def test_the_answer_is_supervised_whole_and_nothing_else(encoder):
    encode, rows, folder = encoder
    encoded = encode.encode(dict(rows[0]))
    supervised = [i for i, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label != IGNORE]
    answer = prompt.render_answer(records(folder)[0].objects, prompt.PromptStyle())
    assert encode.tokenizer.decode(supervised).rstrip() == answer + "<|im_end|>"


def test_collated_targets_stand_in_the_order_of_the_labels(encoder):
    encode, rows, folder = encoder
    batch = encode.data_collator([encode.encode(dict(row)) for row in rows.select(range(5))])
    start = encode.tokenizer.convert_tokens_to_ids("<|coord_0|>")
    slots = batch["labels"][(batch["labels"] >= start) & (batch["labels"] < start + 1000)] - start
    exact = [value for record in records(folder)[:5] for obj in record.objects for value in obj.norm]
    assert torch.allclose(batch["coord_targets"], torch.tensor(exact))
    assert ((slots / 999 - batch["coord_targets"]).abs() <= 0.5 / 999 + 1e-6).all()
    boxes = [obj.norm for record in records(folder)[:5] for obj in record.objects]
    assert torch.allclose(batch["coord_targets"][batch["coord_boxes"]], torch.tensor(boxes))


def test_a_picture_of_another_size_is_refused(encoder, tmp_path):
    encode, _, folder = encoder
    from PIL import Image

    line = (folder / "train.coord.jsonl").read_bytes().splitlines(keepends=True)[0]
    record = records(folder)[0]
    (tmp_path / record.images[0]).parent.mkdir(parents=True)
    Image.new("RGB", (128, 96)).save(tmp_path / record.images[0])
    (tmp_path / "other.jsonl").write_bytes(line)
    with pytest.raises(DataError, match="encoded as 128x96, but the record says 96x96"):
        encode.encode({"jsonl": str(tmp_path / "other.jsonl"), "offset": 0, "line": 1})


def test_a_file_in_the_other_space_is_refused(encoder):
    encode, _, folder = encoder
    with pytest.raises(DataError, match="expected 'token', found 'pixel'"):
        encode.encode({"jsonl": str(folder / "train.jsonl"), "offset": 0, "line": 1})


def test_a_description_that_holds_a_coordinate_token_is_refused(encoder, tmp_path):
    encode, _, folder = encoder
    record = records(folder)[0]
    record.images = [str(folder / record.images[0])]
    record.objects[0].desc = "a <|coord_5|> trap"
    io.write_jsonl(tmp_path / "trap.jsonl", [record])
    with pytest.raises(DataError, match="supervised coordinate tokens"):
        encode.encode({"jsonl": str(tmp_path / "trap.jsonl"), "offset": 0, "line": 1})


def test_loaders_never_run_code_of_a_checkpoint():
    from coordexp.swift import loader

    assert loader.SafeQwen3VLLoader.default_trust_remote_code is False
    assert loader.SafeQwen3VLMoeLoader.default_trust_remote_code is False


def test_a_checkpoint_with_code_of_its_own_is_refused(tmp_path):
    from coordexp.errors import ModelError
    from coordexp.swift.train import refuse_remote_code

    io.write_json(tmp_path / "config.json", {"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}})
    with pytest.raises(ModelError, match="auto_map"):
        refuse_remote_code(tmp_path)
