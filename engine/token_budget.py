"""Counts the tokens of a generation with a Continuation, and says when the second part is due.

Counts only. The engine's requests are `loop`'s.
"""

from collections.abc import Sequence

import msgspec

from engine.messages import Continuation, Generate


class TokenBudget:
    """One generation with a Continuation, from its first token on.

    `own_id`: vLLM's name for the request. `arrived`: when it was asked for, in Unix seconds.
    """

    def __init__(self, request: Generate, then: Continuation, own_id: str, arrived: float) -> None:
        self.request = request
        self.then = then
        self.own_id = own_id
        self.arrived = arrived
        self._drawn: list[int] = []
        self._is_settled = False

    def feed(self, token_ids: Sequence[int]) -> int | None:
        """Takes the next tokens, without a stop token.

        None while the first part goes on. When the budget is spent: how many of these tokens the first part has, the
        one beyond the budget included. Always None once that was told, or once `unless_token_id` has come.
        """
        if self._is_settled:
            return None
        for number, token_id in enumerate(token_ids, 1):
            self._is_settled = token_id == self.then.unless_token_id
            if self._is_settled:
                return None
            if len(self._drawn) == self.then.after_tokens:
                self._is_settled = True
                return number
            self._drawn.append(token_id)
        return None

    def second_part(self) -> Generate:
        """The second part as a request of its own, under the same id."""
        ids = [*self.request.prompt_ids, *self._drawn, *self.then.forced_token_ids]
        return msgspec.structs.replace(self.request, prompt_ids=ids, sampling=self.then.sampling, then=None)
