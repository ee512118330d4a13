"""Has the engine run the generations of one choice, one after the other, in a place of the engine's. Knows no text."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from itertools import count
from typing import TypeVar

import msgspec

from engine.messages import Delta, Generate, TokenLogprob
from server.core.choice import Advance, Choice, Generation
from server.core.scheduler import Claim, Lane, Place, Scheduler
from server.engine_client import EngineClient, EngineUnavailable, ReaderBehind

T = TypeVar("T")


class ChoiceRun:
    """Runs `choice` on `engine` under ids that begin with `request_id`, in places of `claim`.

    `one_by_one` advances a token at a time, for a reader that may end the choice at any of them (`Choice.stop`).
    """

    def __init__(
        self,
        engine: EngineClient,
        scheduler: Scheduler,
        claim: Claim,
        choice: Choice,
        request_id: str,
        *,
        cache_salt: str = "",
        one_by_one: bool = False,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._claim = claim
        self._choice = choice
        self._request_id = request_id
        self._cache_salt = cache_salt
        self._one_by_one = one_by_one
        self._numbers = count()

    async def read(self, read: Callable[[Advance], T]) -> AsyncGenerator[T, None]:
        """Yields what `read` makes of each advance; leaving early aborts the generation that runs.

        Raises EngineUnavailable and RequestFailed as the engine client does, and ReaderBehind where the choice cannot
        be gone on with.
        """
        choice = self._choice
        while choice.finish is None:
            place_for = self._scheduler.place
            async with place_for(self._claim, thinking=choice.thinking, can_set_back=choice.can_set_back) as place:
                while self._may_stay(place):
                    async with aclosing(self._read_generation(place, read)) as pieces:
                        async for piece in pieces:
                            yield piece
            choice.set_back()

    async def _read_generation(self, place: Place, read: Callable[[Advance], T]) -> AsyncGenerator[T, None]:
        """The same for one generation. It is broken off where the reader is behind, and the place left."""
        choice = self._choice
        generation = choice.generation
        request = self._request(generation, place)
        reader = place.reader
        reader.stays_away = partial(self._do_without_reader, place, request.request_id)
        async with aclosing(self._engine.generate(request)) as deltas:
            try:
                async for delta in deltas:
                    self._scheduler.count(place, len(delta.token_ids))
                    for one in self._parts_of(delta):
                        piece = read(choice.feed(one))
                        reader.looks = 1
                        yield piece
                        reader.looks = 0
                        if one.goes_on:
                            generation = choice.generation
                        if choice.generation is not generation or choice.finish is not None:
                            break
                    if place.lane is Lane.THINK and not choice.thinking:
                        self._scheduler.answers(place, can_set_back=choice.can_set_back)
                        self._engine.prioritize(request.request_id, self._priority(place))
                    if choice.generation is not generation or not self._reads_on(place):
                        return
            except ReaderBehind:
                if not choice.can_set_back:
                    raise
                place.revoked = True
                return
        raise EngineUnavailable("the engine broke off")

    def _do_without_reader(self, place: Place, request_id: str) -> None:
        """Leaves the place if the engine has done its part, or can go on later; the reader gets what has come."""
        if self._engine.is_running(request_id):
            if not self._choice.can_pause:
                return
            self._engine.abort(request_id)
        place.revoked = True
        self._scheduler.leave(place)

    def _request(self, generation: Generation, place: Place) -> Generate:
        priority, request_id = self._priority(place), f"{self._request_id}-{next(self._numbers)}"
        return Generate(
            request_id, generation.prompt_ids, generation.sampling, priority, generation.then, self._cache_salt
        )

    def _priority(self, place: Place) -> int:
        """Where pages run out, the engine takes those of thinkers first."""
        return len(Lane) * self._claim.priority + place.lane

    def _parts_of(self, delta: Delta) -> Sequence[Delta]:
        if delta.finish == "abort":
            raise EngineUnavailable("the engine gave up this request")
        return _singles(delta) if self._one_by_one and len(delta.token_ids) > 1 else (delta,)

    def _reads_on(self, place: Place) -> bool:
        """In a place that is left, what has come is read to its end."""
        return self._may_stay(place) or (place.is_left and self._choice.finish is None)

    def _may_stay(self, place: Place) -> bool:
        return self._choice.finish is None and not place.revoked


def _singles(delta: Delta) -> list[Delta]:
    """The same tokens in a delta each; what ends the generation stays with the last."""
    *first, last = delta.token_ids
    entries: list[list[TokenLogprob] | None] = [None] * len(delta.token_ids)
    if delta.logprobs is not None:
        entries = [[entry] for entry in delta.logprobs]
    singles = [
        msgspec.structs.replace(
            delta, token_ids=[token_id], logprobs=entry, finish=None, stop_token_id=None, goes_on=False
        )
        for token_id, entry in zip(first, entries, strict=False)
    ]
    return [*singles, msgspec.structs.replace(delta, token_ids=[last], logprobs=entries[-1])]
