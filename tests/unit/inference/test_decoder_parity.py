"""Training and inference agree: ms-swift's own template gives our prompt, and answers that the grammar knows."""

from __future__ import annotations

import pytest
from PIL import Image

from coordexp.answers import render as prompt
from coordexp.answers.render import PromptStyle
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Checkpoint
from coordexp.modeling.vocab import coord_ids
from coordexp.runtime import io

STYLE = PromptStyle()


@pytest.fixture(scope="module")
def checkpoint(tiny_model):
    return Checkpoint(tiny_model, PredictOptions(), STYLE)


@pytest.fixture(scope="module")
def encoded(tiny_model, shapes_data, checkpoint):
    """(image, categories, input ids, labels) of the training records by ms-swift, open and with categories."""
    from swift.model import get_processor
    from swift.template import get_template

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGE_MIN_TOKEN_NUM", "1")
        processor = get_processor(str(tiny_model), model_type="qwen3_vl")
        template = get_template(processor, template_type="qwen3_vl", max_length=2048)
        template.set_mode("train")
        template.model = checkpoint.model
        # ms-swift writes the published ids into its template; the compact vocabulary has its own
        template.image_token_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        rows = []
        for record in list(io.read_records(shapes_data / "train.coord.jsonl", "token"))[:12]:
            path = shapes_data / record.images[0]
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            for categories in (None, ["red circle", "blue square"]):
                answer = prompt.render_answer(record.objects, STYLE)
                row = {"messages": prompt.chat(STYLE, categories, answer), "images": [str(path)]}
                found = template.encode(row)
                rows.append((image, categories, found["input_ids"], found["labels"]))
        return rows


def test_the_prompt_is_token_for_token_that_of_training(encoded, checkpoint):
    for image, categories, ids, labels in encoded:
        asked = checkpoint.encode([image], [checkpoint.prompt(categories)])["input_ids"][0].tolist()
        assert ids[: len(asked)] == asked
        assert [label >= 0 for label in labels].index(True) == len(asked)


def test_supervised_answers_are_paths(encoded, checkpoint):
    ids = coord_ids(checkpoint.processor)
    end = checkpoint.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    grammar = checkpoint.grammar()
    for _, _, _, labels in encoded:
        answer = [label for label in labels if label >= 0]
        answer = answer[: answer.index(end)]
        assert grammar.admits(answer, range(ids.start, ids.end + 1))
        number, expected = grammar.start, 0
        for token in answer:
            node = grammar.node(number)
            expected += node.kind in ("slot", "text") or node.forced is not None or node.guess == token
            number = node.after(token)
        assert expected == len(answer) - 1  # the skeleton costs nothing; closing is the one decision against the guess
