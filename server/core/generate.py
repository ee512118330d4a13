"""Has the engine run the generations of one choice, one after the other, in a place of the engine's. Knows no text."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from itertools import count
from typing import TypeVar

import msgspec

from engine.messages import Adapter, Delta, Generate, TokenLogprob
from server.core.choice import Advance, Choice, Generation
from server.core.scheduler import Claim, Lane, Place, Scheduler
from server.core.trial_run import TrialRun
from server.core.trials import Trials
from server.engine_client import Deltas, EngineClient, EngineUnavailable, ReaderBehind

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
        adapter: Adapter | None = None,
        one_by_one: bool = False,
        kind: str = "",
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._claim = claim
        self._choice = choice
        self._request_id = request_id
        self._cache_salt = cache_salt
        self._adapter = adapter
        self._one_by_one = one_by_one
        self._kind = kind
        self._numbers = count()
        self._trials: TrialRun | None = None

    async def read(self, read: Callable[[Advance], T]) -> AsyncGenerator[T, None]:
        """Yields what `read` makes of each advance; leaving early aborts the generation that runs.

        Raises EngineUnavailable and RequestFailed as the engine client does, and ReaderBehind where the choice cannot
        be gone on with.
        """
        choice = self._choice
        try:
            while choice.finish is None:
                place_for, claim = self._scheduler.place, self._claim_now
                async with place_for(claim, thinking=choice.thinking, can_set_back=choice.can_set_back) as place:
                    while self._may_stay(place):
                        # Not a generator of its own: each one that a token passes through costs it a microsecond.
                        generation, reader = choice.generation, place.reader
                        request = self._request(generation, place)
                        async with self._generating(request, place) as deltas:
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
                                    self._answers(request, place)
                                if choice.generation is not generation or not self._reads_on(place):
                                    break
                            else:
                                raise EngineUnavailable("the engine broke off")
                choice.set_back()
        finally:
            if self._trials is not None:
                await self._trials.close()

    @asynccontextmanager
    async def _generating(self, request: Generate, place: Place) -> AsyncIterator[Deltas]:
        """What the engine generates for a request. It is broken off where the reader is behind, and the place left."""
        place.reader.stays_away = partial(self._do_without_reader, place, request.request_id)
        async with aclosing(self._engine.generate(request, self._kind)) as deltas:
            try:
                if self._choice.trials is None:
                    yield deltas
                else:
                    async with aclosing(self._trying(self._choice.trials).beside(deltas, place.claim)) as parts:
                        yield parts
            except ReaderBehind:
                if not self._choice.can_set_back:
                    raise
                place.revoked = True

    def _trying(self, trials: Trials) -> TrialRun:
        if self._trials is None:
            self._trials = TrialRun(
                self._engine, self._scheduler, self._choice, trials, request=self._request, kind=self._kind
            )
        return self._trials

    def _answers(self, request: Generate, place: Place) -> None:
        self._scheduler.answers(place, can_set_back=self._choice.can_set_back)
        self._engine.prioritize(request.request_id, self._priority(place))

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
            request_id,
            generation.prompt_ids,
            generation.sampling,
            priority,
            generation.then,
            self._cache_salt,
            self._adapter,
            generation.held_tokens,
        )

    def _priority(self, place: Place) -> int:
        """Where pages run out, the engine takes those of thinkers first."""
        return len(Lane) * place.claim.priority + place.lane

    def _parts_of(self, delta: Delta) -> Sequence[Delta]:
        if delta.finish == "abort":
            raise EngineUnavailable("the engine gave up this request")
        if self._choice.drafting:
            return [part for held in self._choice.draft(delta) for part in self._split(held)]
        return self._split(delta)

    def _split(self, delta: Delta) -> Sequence[Delta]:
        return _singles(delta) if self._one_by_one and len(delta.token_ids) > 1 else (delta,)

    @property
    def _claim_now(self) -> Claim:
        """That of the mode which the choice is in now."""
        if not self._choice.is_dropped:
            return self._claim
        assert self._claim.after_draft is not None
        return self._claim.after_draft

    def _reads_on(self, place: Place) -> bool:
        """In a place that is left, what has come is read to its end."""
        return self._choice.finish is None and (place.is_left or not place.revoked)

    def _may_stay(self, place: Place) -> bool:
        return self._choice.finish is None and not place.revoked and place.claim is self._claim_now


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
