"""A checkpoint in an engine of vLLM in this process, with the answers of our own decoder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from coordexp.answers.render import PromptStyle
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import BasePredictor, Request, checked_folder, local_processor
from coordexp.inference.vllm_engine.settings import check_installed, engine_arguments, environment
from coordexp.modeling.families import family_of
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json

QUEUED = 2  # requests in the engine per answer in progress, so that its scheduler always has one to start


class VllmPredictor(BasePredictor):
    """An engine and a processor. Coordinates, scores and texts come from the same code as with `Predictor`.

    The engine lives in this process, where the logits processor leaves its answers: one process per GPU (`shards`).
    """

    _numbers = itertools.count()  # of the requests to all engines in this process

    def __init__(self, engine: Any, processor: Any, family: Any, config: dict[str, Any], *settings: Any):
        super().__init__(processor, family, config, *settings)
        self.engine = engine

    @classmethod
    def from_checkpoint(
        cls, folder: str | Path, options: PredictOptions, style: PromptStyle, **arguments: Any
    ) -> VllmPredictor:
        """Start an engine for a merged checkpoint folder; ConfigError if vllm is not installed, ModelError for others.

        arguments: further arguments of vLLM's engine.
        """
        check_installed()
        folder = checked_folder(folder)
        os.environ.update(environment(), VLLM_ENABLE_V1_MULTIPROCESSING="0")
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform

        given = engine_arguments(folder, options, style) | {"enforce_eager": current_platform.is_cpu()} | arguments
        engine = LLMEngine.from_engine_args(EngineArgs(**given, disable_log_stats=True))
        config = read_json(folder / "config.json")
        return cls(engine, local_processor(folder), family_of(folder), config, options, style)

    def stream(self, requests: Iterable[Request], capacity: int) -> Iterator[list[tuple[Any, GenerationState]]]:
        """(key, answer) of each request, as soon as it is finished; up to `QUEUED * capacity` images are in memory.

        The engine's own limit of answers in progress is `options.batch_size`.
        """
        from coordexp.inference.vllm_engine.processor import STEPPERS

        samples = self.options.samples
        waiting = ((request, sample) for request in requests for sample in range(samples))
        asked: dict[str, Request] = {}
        try:
            while True:
                for request, sample in itertools.islice(waiting, max(0, QUEUED * capacity - len(asked))):
                    asked[self._add(request, sample)] = request
                if not asked:
                    return
                numbers = [output.request_id for output in self.engine.step() if output.finished]
                if numbers:
                    yield [(asked.pop(number).key, self._finished(int(number))) for number in numbers]
        finally:
            if asked:
                self.engine.abort_request(list(asked))
                for number in asked:
                    STEPPERS.pop(int(number), None)

    def _finished(self, number: int) -> GenerationState:
        from coordexp.inference.vllm_engine.processor import STEPPERS

        stepper = STEPPERS.pop(number)
        assert stepper is not None, "the engine has finished a request without its logits processor"
        return self.grammars.finished(stepper.finish())

    def _add(self, request: Request, sample: int) -> str:
        """Add an answer to a request to the engine; returns its number."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind

        from coordexp.inference.vllm_engine.processor import STEPPERS

        image = request.image if isinstance(request.image, Image.Image) else request.image()
        self.check_size(image)
        number = next(self._numbers)
        arguments = {"coordexp_key": number, "sample": sample, "identity": request.identity}
        if (labels := self.labels_of(request.prompt)) is not None:
            arguments["labels"] = list(labels)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=self.options.max_new_tokens + 1,  # and the end of turn
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=arguments,
        )
        prompt = {
            "prompt": self.prompt_text(request.prompt.categories, request.prompt.phrase),
            "multi_modal_data": {"image": image},
            "mm_processor_kwargs": {"do_resize": False},
        }
        STEPPERS[number] = None
        try:
            self.engine.add_request(str(number), prompt, params)
        except VLLMValidationError as error:
            del STEPPERS[number]
            fix = "name fewer categories per prompt (predict.chunk) or use smaller images (max_blocks)"
            raise DataError(located(f"vLLM rejects a prompt: {error}", fix=fix)) from error
        return str(number)
