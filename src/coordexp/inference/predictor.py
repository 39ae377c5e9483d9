"""A model in memory that answers prompts about images, encoded exactly as in training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from coordexp.answers.render import PromptStyle, user_text
from coordexp.inference.attention import avoid_planned_attention
from coordexp.inference.decoder import ConstrainedDecoder
from coordexp.inference.encoding import Inputs, encoded_ahead, left_padded
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.grammar.token_grammar import Grammar
from coordexp.inference.grammars import Grammars
from coordexp.inference.options import PredictOptions, check_options
from coordexp.inference.prompts import Prompt
from coordexp.modeling.chat_template import prompt_frame
from coordexp.modeling.checkpoint_safety import check_checkpoint, library_errors
from coordexp.modeling.families import ModelFamily, family_named, family_of
from coordexp.modeling.safetensors_io import open_checkpoint
from coordexp.modeling.vocab import CoordIds, verified_ids
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError, ModelError, located

LOCAL = {"trust_remote_code": False, "local_files_only": True}


class Request(NamedTuple):
    """One prompt about one image; `key` identifies the answer and is chosen by the caller.

    image: the image, or a function that loads it; that runs in another thread on a machine with an accelerator.
    identity: with the options, it determines the sampled answers; the image's id and the number of the prompt.
    """

    key: Any
    image: Image.Image | Callable[[], Image.Image]
    prompt: Prompt
    identity: tuple[int | str, ...] = ()


def checked_folder(folder: str | Path) -> Path:
    """The folder of a merged checkpoint; ModelError for any other."""
    folder = check_checkpoint(folder)
    if not (folder / "config.json").is_file():
        fix = "use a merged Hugging Face checkpoint folder (rule merge)"
        raise ModelError(located("not a checkpoint folder", file=folder, fix=fix))
    return folder


def local_processor(folder: Path) -> Any:
    """The Hugging Face processor of a checkpoint folder."""
    from transformers import AutoProcessor

    with library_errors("load the checkpoint", folder):
        return AutoProcessor.from_pretrained(folder, **LOCAL)


class BasePredictor:
    """What every engine shares: prompts, grammars and texts.

    processor: the checkpoint's Hugging Face processor.
    config: contents of the checkpoint's config.json.
    options, style: how answers are decoded, and how prompts and answers are written.
    """

    def __init__(
        self,
        processor: Any,
        family: ModelFamily,
        config: dict[str, Any],
        options: PredictOptions,
        style: PromptStyle,
    ):
        check_options(options, style)
        self.processor, self.options, self.style = processor, options, style
        self.patch, self.factor = family.patch_size(config), family.tile_size(config)
        self.grammars = Grammars(processor.tokenizer, options, style)
        self.vocabulary = self.grammars.vocabulary

    def prompt_text(self, categories: Sequence[str] | None = None, phrase: str | None = None) -> str:
        """The chat prompt with one image placeholder, up to where the answer starts."""
        before, after = prompt_frame(self.processor)
        return before + user_text(self.style, categories, phrase) + after

    def labels_of(self, prompt: Prompt) -> tuple[str, ...] | None:
        """The only labels allowed in an answer; any for a phrase and integers, which cannot be combined with labels."""
        return None if prompt.phrase is not None and self.style.coordinates == "integer" else prompt.labels

    def check_size(self, image: Image.Image) -> None:
        """DataError for an image whose sides are not multiples of `factor` pixels, as images are not resized."""
        if image.width % self.factor or image.height % self.factor:
            fix = f"resize images to multiples of {self.factor} pixels first (rule convert_resize)"
            found = f"{image.width}x{image.height}"
            raise DataError(located("image size is not on the model's grid", found=found, fix=fix))

    def grammar(self, labels: Sequence[str] | None = None) -> Grammar:
        """The grammar of answers, whose descriptions are limited to `labels` if given; compiled once per list."""
        return self.grammars.grammar(labels)

    def answer(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[GenerationState]:
        """The most likely answer to each image and its prompt, in one batch."""
        requests = [Request(n, *pair) for n, pair in enumerate(zip(images, prompts, strict=True))]
        finished = (pair for group in self.stream(requests, len(requests)) for pair in group)
        answers = {key: answer for key, answer in finished if answer.sample == 0}
        return [answers[n] for n in range(len(requests))]

    def stream(self, requests: Iterable[Request], capacity: int) -> Iterator[list[tuple[Any, GenerationState]]]:
        """(key, answer) of each request, as soon as they are finished, with at most `capacity` in progress.

        A request has `options.samples` answers (see `GenerationState.sample`).
        """
        raise NotImplementedError

    def text(self, answer: GenerationState) -> str:
        """The answer as text, special tokens included."""
        return self.processor.tokenizer.decode(answer.tokens, skip_special_tokens=False)


class Predictor(BasePredictor):
    """A model and its processor, ready to generate answers.

    model: of one of the model families, also in training with its adapters.
    processor: the checkpoint's Hugging Face processor.
    ids: coordinate token ids; None if coordinates are integers in text.
    options, style: how answers are decoded, and how prompts and answers are written.
    """

    def __init__(self, model: Any, processor: Any, ids: CoordIds | None, options: PredictOptions, style: PromptStyle):
        super().__init__(processor, family_named(model.config.model_type), model.config.to_dict(), options, style)
        self.model, self.ids = model, ids
        self.decoder = ConstrainedDecoder(model, ids, options)

    @classmethod
    def from_checkpoint(
        cls, folder: str | Path, options: PredictOptions, style: PromptStyle, device: str | None = None
    ) -> Predictor:
        """Load a merged checkpoint folder; ModelError for any other folder. `device` defaults to the GPU, if any."""
        from transformers import AutoModelForImageTextToText

        folder = checked_folder(folder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        avoid_planned_attention()
        family_of(folder)
        ids = verified_ids(folder) if style.coordinates == "token" else None
        open_checkpoint(folder)
        processor = local_processor(folder)
        with library_errors("load the checkpoint", folder):
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder, dtype="auto", attn_implementation="sdpa", output_loading_info=True, **LOCAL
            )
        missing = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
        if missing:  # which transformers would fill with random values
            facts = {"found": missing[:5], "fix": "fetch or merge the checkpoint again"}
            raise ModelError(located(f"{len(missing)} tensors are missing or have another shape", file=folder, **facts))
        return cls(model.to(device).eval(), processor, ids, options, style)

    def encode(self, images: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Model inputs of a left-padded batch on the model's device.

        Image sizes must be multiples of `factor` pixels, as the images are not resized; DataError otherwise.
        """
        return self._to_device(self._process(images, texts))

    def _process(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Inputs:
        for image in images:
            self.check_size(image)
        inputs = self.processor(
            text=list(texts),
            images=[[image] for image in images],
            padding=True,
            padding_side="left",
            do_resize=False,
            return_tensors="pt",
        )
        expected = [[1, image.height // self.patch, image.width // self.patch] for image in images]
        if inputs["image_grid_thw"].tolist() != expected:
            found = inputs["image_grid_thw"].tolist()
            raise DataError(located("the processor resized an image", expected=expected, found=found))
        return dict(inputs)

    def _to_device(self, inputs: Inputs) -> Inputs:
        return {name: tensor.to(self.model.device, non_blocking=True) for name, tensor in inputs.items()}

    def _encode_one(self, request: Request) -> Inputs:
        """Inputs of one request, in the memory of the host."""
        image = request.image if isinstance(request.image, Image.Image) else request.image()
        return self._process([image], [self.prompt_text(request.prompt.categories, request.prompt.phrase)])

    def _workers(self) -> int:
        return 0 if self.model.device.type == "cpu" else tuning.ENCODING_THREADS

    def stream(self, requests: Iterable[Request], capacity: int) -> Iterator[list[tuple[Any, GenerationState]]]:
        """(key, answer) of each request, as soon as they are finished, with at most `capacity` in progress.

        A request has `options.samples` answers (see `GenerationState.sample`), which are decoded at the same time.
        `requests` is read lazily, and no more than `capacity` images are prepared ahead.
        """
        waiting = encoded_ahead(requests, self._encode_one, capacity, self._workers())
        keys: dict[int, Any] = {}

        def refill(free: int) -> tuple[dict[str, torch.Tensor], list[GenerationState]] | None:
            taken = list(itertools.islice(waiting, max(1, free // self.options.samples)))
            if not taken:
                return None
            states = []
            for request, _ in taken:
                for sample in range(self.options.samples):
                    state = self.grammars.new_state(self.labels_of(request.prompt), sample, request.identity)
                    states.append(state)
                    keys[id(state)] = request.key
            batch = left_padded([inputs for _, inputs in taken], self.processor.tokenizer.pad_token_id)
            return self._to_device(batch), states

        for finished in self.decoder.stream(refill, capacity):
            yield [(keys.pop(id(state)), self.grammars.finished(state)) for state in finished]
