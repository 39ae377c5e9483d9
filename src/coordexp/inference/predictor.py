"""A model ready to answer: processor, coordinate ids, and prompts exactly as in training."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from coordexp.answers.render import PromptStyle, hf_chat
from coordexp.inference.decoder import Decoder
from coordexp.inference.generation_state import GenerationState, Limits
from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.inference.grammar.token_grammar import Grammar, compile_grammar
from coordexp.inference.options import PredictOptions
from coordexp.inference.prompts import Question
from coordexp.modeling.families import family_named
from coordexp.modeling.vocab import CoordIds, verified_ids
from coordexp.runtime.errors import DataError, ModelError, located

Asked = tuple[Any, Image.Image, Question]


class Predictor:
    """A model in memory that answers images on its grid with their prompts.

    model: Qwen3-VL, in training or not, adapters in place. ids: None when coordinates are text integers.
    """

    def __init__(self, model: Any, processor: Any, ids: CoordIds | None, options: PredictOptions, style: PromptStyle):
        self.model, self.processor, self.ids = model, processor, ids
        self.options, self.style = options, style
        self.decoder = Decoder(self.model, self.ids, options)
        family, config = family_named(model.config.model_type), model.config.to_dict()
        self.patch, self.factor = family.patch_size(config), family.tile_size(config)
        self._vocabulary = Vocabulary(self.processor.tokenizer)
        self._grammars: dict[tuple[str, ...] | None, Grammar] = {}

    def prompt(self, categories: Sequence[str] | None = None) -> str:
        """The prompt's text with one place for the image, up to where the answer starts."""
        return self.processor.apply_chat_template(
            hf_chat(self.style, categories), add_generation_prompt=True, tokenize=False
        )

    def encode(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Model inputs of a left-padded batch; the images must be on the grid and keep their size."""
        for image in images:
            if image.width % self.factor or image.height % self.factor:
                fix = f"resize images to multiples of {self.factor} first (rule convert_resize)"
                raise DataError(located("image off the model's grid", found=f"{image.width}x{image.height}", fix=fix))
        inputs = self.processor(
            text=list(prompts),
            images=[[image] for image in images],
            padding=True,
            padding_side="left",
            do_resize=False,
            return_tensors="pt",
        )
        expected = [[1, image.height // self.patch, image.width // self.patch] for image in images]
        if inputs["image_grid_thw"].tolist() != expected:
            raise DataError(located("the processor resized a image", expected=expected, found=inputs["image_grid_thw"]))
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def grammar(self, labels: Sequence[str] | None = None) -> Grammar:
        """The grammar of answers, free or limited to `labels`; compiled once each."""
        key = None if labels is None else tuple(labels)
        if key not in self._grammars:
            options = self.options
            self._grammars[key] = compile_grammar(
                self._vocabulary,
                self.style,
                kinds=options.geometry,
                labels=key,
                poly_max_points=options.poly_max_points,
            )
        return self._grammars[key]

    def answer(self, images: Sequence[Image.Image], questions: Sequence[Question]) -> list[GenerationState]:
        """One finished answer for each image and its question."""
        asked = zip(range(len(images)), images, questions, strict=True)
        answers = dict(pair for finished in self.stream(asked, len(images)) for pair in finished)
        return [answers[n] for n in range(len(images))]

    def stream(self, asked: Iterable[Asked], capacity: int) -> Iterator[list[tuple[Any, GenerationState]]]:
        """(key, answer) of each asked (key, image, question) as they are finished, `capacity` at a time."""
        waiting = iter(asked)
        keys: dict[int, Any] = {}

        def refill(free: int) -> tuple[dict[str, torch.Tensor], list[GenerationState]] | None:
            taken = list(itertools.islice(waiting, free))
            if not taken:
                return None
            answers = [GenerationState(self.grammar(question.labels), limits, desc_first) for _, _, question in taken]
            keys.update({id(answer): key for answer, (key, _, _) in zip(answers, taken, strict=True)})
            prompts = [self.prompt(question.categories) for _, _, question in taken]
            return self.encode([image for _, image, _ in taken], prompts), answers

        limits = Limits.of(self.options)
        desc_first = self.style.object_field_order == "desc_first"
        for finished in self.decoder.stream(refill, capacity):
            if self.style.coordinates == "integer":
                for answer in finished:
                    answer.pieces = [self._vocabulary.spelling.get(token, b"") for token in answer.tokens]
            yield [(keys.pop(id(answer)), answer) for answer in finished]

    def text(self, answer: GenerationState) -> str:
        """The answer as text, special tokens included."""
        return self.processor.tokenizer.decode(answer.tokens, skip_special_tokens=False)


class Checkpoint(Predictor):
    """The model of a merged checkpoint folder, ready to answer."""

    def __init__(self, model_dir: str | Path, options: PredictOptions, style: PromptStyle, device: str | None = None):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if not (Path(model_dir) / "config.json").is_file():
            fix = "give a merged Hugging Face checkpoint folder (rule merge)"
            raise ModelError(located("not a checkpoint folder", file=model_dir, fix=fix))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        processor = AutoProcessor.from_pretrained(model_dir)
        model = AutoModelForImageTextToText.from_pretrained(model_dir, dtype="auto", attn_implementation="sdpa")
        ids = verified_ids(model_dir) if style.coordinates == "token" else None
        super().__init__(model.to(device).eval(), processor, ids, options, style)
