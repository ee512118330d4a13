"""Answers a chat job: the pieces of its choices gathered to one response, or passed on as a stream.

Response and stream are built from the same pieces, which is why they are equal.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from server.api.chat.objects import ChunkWriter, Gathered, completion
from server.core.generate import Turn
from server.core.job import Job
from server.core.run import run_job, start_turns
from server.errors import ApiError, JsonObject
from server.http.sse import DONE, encode_event
from server.serving import Serving


async def complete(job: Job, serving: Serving) -> JsonObject:
    """The whole response; raises ApiError."""
    turns = start_turns(job, serving)
    gathered = [Gathered() for _ in turns]
    async with aclosing(run_job(job, turns, serving)) as pieces:
        async for piece in pieces:
            gathered[piece.choice].add(piece)
    _remember(job, turns, serving)
    return completion(job, turns, serving.settings.model_name, gathered)


async def stream(job: Job, serving: Serving, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The response as server-sent events. Raises ApiError before the first event; later, one event tells the error."""
    turns = start_turns(job, serving)
    writer = ChunkWriter(job, serving.settings.model_name, include_usage=include_usage)
    started = False
    try:
        async with aclosing(run_job(job, turns, serving)) as pieces:
            async for piece in pieces:
                events = writer.piece(piece)
                if not started:
                    events = writer.begin() + events
                    started = True
                if events:
                    yield events
    except ApiError as error:
        if not started:
            raise
        yield encode_event(error.body())
        return
    _remember(job, turns, serving)
    yield writer.finish(turns) + DONE


def _remember(job: Job, turns: Sequence[Turn], serving: Serving) -> None:
    """The prompt that ended within a think block does not come back: thinking is dropped."""
    for plan, turn in zip(job.turns, turns, strict=True):
        if turn.thinking_finish is None:
            serving.written.remember(plan.prompt_ids, turn.token_ids)
