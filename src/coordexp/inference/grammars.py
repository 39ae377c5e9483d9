"""The compiled grammars of one checkpoint, prompt style and set of options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordexp.answers.render import PromptStyle
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.inference.grammar.token_grammar import Grammar, compile_grammar
from coordexp.inference.options import PredictOptions
from coordexp.inference.sampling import Sampler

MAX_COMPILED = 256  # lists of labels whose grammars are kept


class Grammars:
    """Compiles each grammar once, and starts answers under it.

    tokenizer: the checkpoint's Hugging Face tokenizer, or its `Vocabulary`.
    """

    def __init__(self, tokenizer: Any, options: PredictOptions, style: PromptStyle):
        self.vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary(tokenizer)
        self.options, self.style = options, style
        self._compiled: dict[tuple[str, ...] | None, Grammar] = {}

    def grammar(self, labels: Sequence[str] | None = None) -> Grammar:
        """The grammar of answers, whose descriptions are limited to `labels` if given."""
        key = None if labels is None else tuple(labels)
        if key not in self._compiled:
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.pop(next(name for name in self._compiled if name is not None))
            options = self.options
            self._compiled[key] = compile_grammar(
                self.vocabulary,
                self.style,
                kinds=options.geometry,
                labels=key,
                poly_max_points=options.poly_max_points,
            )
        return self._compiled[key]

    def new_state(
        self, labels: Sequence[str] | None = None, sample: int = 0, identity: Sequence[int | str] = ()
    ) -> GenerationState:
        """An answer that has not started; the one with number `sample` to a request (see `Request.identity`)."""
        desc_first, options = self.style.object_field_order == "desc_first", self.options
        state = GenerationState(self.grammar(labels), options, desc_first, sample=sample)
        if sample:
            state.sampler = Sampler(options.sample_seed, tuple(identity), sample, options.sample_temperature)
        return state

    def finished(self, state: GenerationState) -> GenerationState:
        """`state`, with the bytes of its tokens if its coordinates are integers in text."""
        if self.style.coordinates == "integer":
            state.token_bytes = list(map(self.vocabulary.bytes_of, state.tokens))
        return state
