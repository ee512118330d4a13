"""Runs a job: its turns at once, each turn's tokens to pieces of the answer, and the metrics of it all."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.core.generate import run_turn
from server.core.job import CompletionJob, Job
from server.core.merge import merged
from server.core.reader import Piece, TurnReader
from server.engine_client import EngineUnavailable, RequestFailed
from server.errors import BadRequestError
from server.metrics import RequestWatch
from server.serving import Serving


class Run:
    """One job under way. `turns` are its choices; what an answer says of them at its end stands in them."""

    def __init__(self, job: Job, serving: Serving) -> None:
        self.job = job
        self.turns = [plan.start(serving.fmt.think_end()) for plan in job.turns]
        self._serving = serving

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces of all choices as they come; raises ApiError."""
        job, turns, serving = self.job, self.turns, self._serving
        with serving.metrics.watch(job.mode, job.arrived) as watch, serving.one_more(job.id, turns):
            readers = [TurnReader(serving.fmt, job, index, turn) for index, turn in enumerate(turns)]
            try:
                async with aclosing(merged([self._pieces(reader) for reader in readers])) as pieces:
                    async for piece in pieces:
                        watch.advance(answering=readers[piece.choice].answering)
                        yield piece
                for reader in readers:
                    piece = reader.finish()
                    watch.advance(answering=reader.answering)
                    yield piece
            except (asyncio.CancelledError, GeneratorExit):
                watch.outcome = "cancelled"
                raise
            except EngineUnavailable as error:
                raise serving.unavailable(str(error) or serving.describe_engine()) from error
            except RequestFailed as error:
                watch.outcome = "rejected"
                raise BadRequestError(str(error)) from error
            else:
                watch.outcome = "completed"
            finally:
                self._count(watch)
        self._remember()

    def _pieces(self, reader: TurnReader) -> AsyncGenerator[Piece, None]:
        job = self.job
        one_by_one = bool(job.stops) or not job.answer_format.parallel
        request_id = f"{job.id}-{reader.choice}"
        return run_turn(self._serving.engine, reader.turn, request_id, job.priority, reader.read, one_by_one=one_by_one)

    def _count(self, watch: RequestWatch) -> None:
        reasoning = sum(turn.reasoning_tokens for turn in self.turns)
        watch.count(
            prompt=self.job.prompt_tokens,
            cached=self.job.cached_tokens(self.turns),
            reasoning=reasoning,
            answer=sum(turn.completion_tokens for turn in self.turns) - reasoning,
        )
        for turn in self.turns:
            if turn.thinking_finish is not None:
                self._serving.metrics.reasoning_finish.labels(turn.thinking_finish).inc()

    def _remember(self) -> None:
        """What answered a conversation comes back with its next request; but thinking does not, it is dropped."""
        if isinstance(self.job, CompletionJob):
            return
        for plan, turn in zip(self.job.turns, self.turns, strict=True):
            if turn.thinking_finish is None:
                self._serving.written.remember(plan.prompt_ids, turn.token_ids)
