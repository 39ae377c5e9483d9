"""One answer, generated one token per step, for engines that run the model in a loop of their own.

The engine asks for the next token after each forward pass. The decisions are those of `GenerationState`, so the answer
is the one that `ConstrainedDecoder` generates; tokens that the grammar forces cost a step each.
"""

from __future__ import annotations

from coordexp.inference.generation_state import GenerationState, TokenChoice
from coordexp.inference.token_chooser import OpenChoice


class TokenStepper:
    """Proposes the tokens of one answer in order.

    A proposed token counts once the engine has accepted it: an engine discards tokens that it samples before a prompt
    is complete, and asks again.

    state: the answer; changes only when a token is accepted.
    end_token: proposed after the last token of the answer.
    """

    def __init__(self, state: GenerationState, end_token: int):
        self.state, self.end_token = state, end_token
        self.accepted = 0
        self._verified: list[TokenChoice] = []  # the model's choices at the drafts of `state.pending` that it confirmed
        self._proposed: tuple[TokenChoice, bool] | None = None  # the last proposal, and whether the model chose it

    def accept(self, accepted: int) -> None:
        """Record that the engine has accepted `accepted` tokens in total: with or without the last proposal."""
        proposed, self._proposed = self._proposed, None
        if accepted == self.accepted:
            return
        if accepted != self.accepted + 1 or proposed is None:
            raise ValueError(f"expected {self.accepted} or {self.accepted + 1} accepted tokens, found {accepted}")
        choice, open_choice = proposed
        if open_choice:
            self._advance(choice)
        self.accepted = accepted

    @property
    def ended(self) -> bool:
        """Whether nothing but the end token is left to accept."""
        if self._proposed is not None and self._proposed[0].token == self.end_token:
            return True
        return self.state.finish is not None and self.accepted >= len(self.state.tokens)

    def finish(self) -> GenerationState:
        """The answer, after the engine has stopped at the end token, which is a choice in some formats, or before it.

        An engine also stops where prompt and answer reach the maximum length of its sequences.
        """
        if self.state.finish is None:
            self.accept(self.accepted + 1)
        if self.state.finish is None:
            self.state.truncate(self.accepted - len(self.state.tokens))
        return self.state

    def open_choice(self) -> OpenChoice | None:
        """The position of the next token if the model chooses it; None if it is forced."""
        state = self.state
        index = self.accepted - len(state.tokens)
        if index < 0 or state.finish is not None:
            return None
        if index == len(state.pending):
            return OpenChoice(state.node, state, self.accepted)
        pending = state.pending[index]
        return OpenChoice(pending.node, state, self.accepted) if pending.draft and pending.node else None

    def propose(self, choice: TokenChoice | None = None) -> TokenChoice:
        """The next token: `choice`, which is the model's at `open_choice`, or the forced one."""
        self._proposed = (choice, True) if choice else (TokenChoice(self._forced(), 0.0), False)
        return self._proposed[0]

    def _forced(self) -> int:
        tokens = self.state.tokens
        if self.accepted < len(tokens):
            return tokens[self.accepted]
        return self.end_token if self.state.finish else self.state.pending[self.accepted - len(tokens)].token

    def _advance(self, choice: TokenChoice) -> None:
        state = self.state
        choices = [*self._verified, choice]
        index = self.accepted - len(state.tokens)
        if index < len(state.pending) and state.pending[index].token == choice.token:
            self._verified = choices  # the draft is confirmed
        else:
            self._verified = []
            state.advance(choices)
