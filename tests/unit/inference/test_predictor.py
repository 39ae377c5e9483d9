"""Prompts and answers are those of training by ms-swift's own template; inputs that cannot be used are rejected."""

from __future__ import annotations

import pytest
from PIL import Image

from coordexp.answers import render
from coordexp.answers.render import PromptStyle
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.modeling.vocab import coord_ids
from coordexp.records import read_records
from coordexp.runtime.errors import DataError, ModelError

STYLE = PromptStyle()


@pytest.fixture(scope="module")
def untaught(tiny_model):
    return Predictor.from_checkpoint(tiny_model, PredictOptions(), STYLE)


@pytest.fixture(scope="module")
def encoded(tiny_model, shapes_data, untaught):
    """(image, categories, input ids, labels) of the training records by ms-swift, open and with categories."""
    from swift.model import get_processor
    from swift.template import get_template

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGE_MIN_TOKEN_NUM", "1")
        processor = get_processor(str(tiny_model), model_type="qwen3_vl")
        template = get_template(processor, template_type="qwen3_vl", max_length=2048)
        template.set_mode("train")
        template.model = untaught.model
        # ms-swift hard-codes the published ids in its template; the compact vocabulary has others
        template.image_token_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        rows = []
        for record in list(read_records(shapes_data / "train.coord.jsonl", "token"))[:12]:
            path = shapes_data / record.images[0]
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            for categories in (None, ["red circle", "blue square"]):
                answer = render.render_answer(record.objects, STYLE)
                row = {"messages": render.chat(STYLE, categories, answer), "images": [str(path)]}
                sample = template.encode(row)
                rows.append((image, categories, sample["input_ids"], sample["labels"]))
        return rows


def test_prompt_tokens_equal_those_of_training(encoded, untaught):
    for image, categories, ids, labels in encoded:
        asked = untaught.encode([image], [untaught.prompt_text(categories)])["input_ids"][0].tolist()
        assert ids[: len(asked)] == asked
        assert [label >= 0 for label in labels].index(True) == len(asked)


def test_training_answers_are_paths_of_the_grammar(encoded, untaught):
    ids = coord_ids(untaught.processor)
    end = untaught.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    grammar = untaught.grammar()
    for _, _, _, labels in encoded:
        answer = [label for label in labels if label >= 0]
        answer = answer[: answer.index(end)]
        assert grammar.admits(answer, range(ids.start, ids.end + 1))
        index, expected = grammar.start, 0
        for token in answer:
            node = grammar.node(index)
            expected += node.kind in ("slot", "text") or node.forced is not None or node.draft == token
            index = node.after(token)
        assert expected == len(answer) - 1  # the skeleton costs nothing; closing is the one decision against the draft


def test_images_off_the_grid_are_rejected(predictor):
    with pytest.raises(DataError, match="grid"):
        predictor.encode([Image.new("RGB", (100, 96))], [predictor.prompt_text()])


def test_a_folder_without_a_checkpoint_is_rejected(tmp_path):
    with pytest.raises(ModelError, match="merged"):
        Predictor.from_checkpoint(tmp_path, PredictOptions(), PromptStyle())
