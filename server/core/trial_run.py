"""Runs the trial answers of one choice beside its thought, each in a place of its own, at most one at a time.

A trial begins only where a place is free and nobody waits for one; it gives up the place as soon as another needs it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec

from engine.messages import Delta, Generate
from server.core.choice import Choice, Generation
from server.core.scheduler import Claim, Place, Scheduler
from server.core.trials import Trials
from server.engine_client import Deltas, EngineClient, EngineError, ReaderBehind

PATIENCE = 10.0
"""Seconds that a thought's tokens are kept back for a trial that does not come on."""


class TrialRun:
    """The `trials` of `choice`; `request` makes what is sent to the engine."""

    def __init__(
        self,
        engine: EngineClient,
        scheduler: Scheduler,
        choice: Choice,
        trials: Trials,
        *,
        request: Callable[[Generation, Place], Generate],
        kind: str = "",
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._choice = choice
        self._trials = trials
        self._request = request
        self._kind = f"{kind} trial"  # much shorter than what else is of that kind
        self._task: asyncio.Task[None] | None = None
        self._has_more = asyncio.Event()

    async def beside(self, deltas: Deltas, claim: Claim) -> AsyncGenerator[Delta, None]:
        """The deltas of a generation, in parts that the choice may be fed; trials begin between them."""
        trials = self._trials
        try:
            async for delta in deltas:
                rest: Delta | None = delta
                while rest is not None and self._tries:
                    size, at = trials.take(rest.token_ids, self._choice.completion_tokens)
                    if size == 0 and rest.token_ids:
                        await self._wait()
                        continue
                    part, rest = _cut(rest, size)
                    yield part
                    if at is not None and self._tries:
                        self._begin(at, claim)
                if rest is not None:
                    self._end_with_thought()
                    yield rest
        finally:
            self._end_with_thought()

    @property
    def _tries(self) -> bool:
        return self._choice.thinking and self._choice.finish is None and not self._trials.is_over

    def _end_with_thought(self) -> None:
        if self._trials.is_over and self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Ends the trial that runs."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _wait(self) -> None:
        """Until the trial has told more; it is given up where that takes too long."""
        self._has_more.clear()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._has_more.wait()
        except TimeoutError:
            await self.close()

    def _begin(self, at: int, claim: Claim) -> None:
        generation = self._choice.trial(at)
        place = None if generation is None else self._scheduler.spare(claim)
        if generation is None or place is None:
            return
        self._trials.begin(self._choice.completion_tokens)
        self._task = asyncio.create_task(self._run(self._request(generation, place), place))

    async def _run(self, request: Generate, place: Place) -> None:
        trials, has_ended, has_failed = self._trials, False, False
        try:
            async with aclosing(self._engine.generate(request, self._kind)) as deltas:
                async for delta in deltas:
                    self._scheduler.count(place, len(delta.token_ids))
                    trials.drew(delta)
                    self._has_more.set()
                    has_ended = delta.finish in ("stop", "length")
                    if delta.finish is not None or self._scheduler.is_wanted(place):
                        break
        except (EngineError, ReaderBehind):
            has_failed = True  # what that means for the thought, its own generation tells
        finally:
            if has_ended:
                trials.conclude()
            else:
                trials.give_up(for_good=has_failed)
            self._scheduler.leave(place)
            self._has_more.set()


def _cut(delta: Delta, size: int) -> tuple[Delta, Delta | None]:
    """A delta's first tokens, and the others, with what ends the generation."""
    ids, entries = delta.token_ids, delta.logprobs
    if size >= len(ids):
        return delta, None
    replace = msgspec.structs.replace
    first = None if entries is None else entries[:size]
    part = replace(delta, token_ids=ids[:size], logprobs=first, finish=None, stop_token_id=None, goes_on=False)
    rest = None if entries is None else entries[size:]
    return part, replace(delta, token_ids=ids[size:], logprobs=rest)
