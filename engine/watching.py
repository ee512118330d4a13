"""Watches the tokens of a generation that another may take the place of; counts only, the engine itself is `loop`'s."""

from collections.abc import Sequence

import msgspec

from engine.messages import Continuation, Generate


class Watch:
    """One generation with a Continuation, from its first token on. `own_id`: vLLM's; `arrived`: when it was asked for,
    in Unix seconds.
    """

    def __init__(self, request: Generate, then: Continuation, own_id: str, arrived: float) -> None:
        self.request = request
        self.then = then
        self.own_id = own_id
        self.arrived = arrived
        self._drawn: list[int] = []
        self._is_over = False

    def feed(self, token_ids: Sequence[int]) -> int | None:
        """Takes the next tokens, without a stop token; how many of them are still of this generation, if it is the
        other's turn now, and None if it is not.
        """
        if self._is_over:
            return None
        for number, token_id in enumerate(token_ids, 1):
            self._is_over = token_id == self.then.unless
            if self._is_over:
                return None
            if len(self._drawn) == self.then.after:
                self._is_over = True
                return number
            self._drawn.append(token_id)
        return None

    def following(self) -> Generate:
        """What takes the generation's place, under its id."""
        ids = [*self.request.prompt_ids, *self._drawn, *self.then.said]
        return msgspec.structs.replace(self.request, prompt_ids=ids, sampling=self.then.sampling, then=None)
