"""Runs a job: its turns at once, each turn's tokens to pieces of the response, and the metrics of it all."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from server.core.generate import Turn, run_turn
from server.core.job import Job
from server.core.merge import merged
from server.core.reader import Piece, TurnReader
from server.engine_client import EngineUnavailable, RequestFailed
from server.errors import BadRequestError
from server.metrics import RequestWatch
from server.serving import Serving


def start_turns(job: Job, serving: Serving) -> list[Turn]:
    """The job's turns, not yet begun."""
    return [plan.start(serving.fmt.think_end()) for plan in job.turns]


async def run_job(job: Job, turns: Sequence[Turn], serving: Serving) -> AsyncGenerator[Piece, None]:
    """The pieces of all choices as they come; raises ApiError."""
    with serving.metrics.watch(job.mode, job.arrived) as watch, serving.one_more(job.id, turns):
        readers = [TurnReader(serving.fmt, job, index, turn) for index, turn in enumerate(turns)]
        try:
            async with aclosing(merged([_pieces(job, reader, serving) for reader in readers])) as pieces:
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
            _count(watch, job, turns, serving)


def _pieces(job: Job, reader: TurnReader, serving: Serving) -> AsyncGenerator[Piece, None]:
    one_by_one = bool(job.stops) or not job.answer_format.parallel
    request_id = f"{job.id}-{reader.choice}"
    return run_turn(serving.engine, reader.turn, request_id, job.priority, reader.read, one_by_one=one_by_one)


def _count(watch: RequestWatch, job: Job, turns: Sequence[Turn], serving: Serving) -> None:
    reasoning = sum(turn.reasoning_tokens for turn in turns)
    watch.count(
        prompt=job.prompt_tokens,
        cached=job.cached_tokens(turns),
        reasoning=reasoning,
        answer=sum(turn.completion_tokens for turn in turns) - reasoning,
    )
    for turn in turns:
        if turn.thinking_finish is not None:
            serving.metrics.reasoning_finish.labels(turn.thinking_finish).inc()
