"""Answers a text completion: the pieces of its choices gathered to one response, or passed on as a stream.

Response and stream are built from the same parts, which is why they are equal.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.api.completions.objects import TextWriter
from server.core.job import CompletionJob
from server.core.run import run_job, start_turns
from server.errors import ApiError, JsonObject
from server.http.sse import DONE, encode_event
from server.serving import Serving


async def complete_text(job: CompletionJob, serving: Serving) -> JsonObject:
    """The whole response; raises ApiError."""
    turns = start_turns(job, serving)
    writer = TextWriter(job, turns, serving)
    parts = [[writer.begin(index)] for index in range(len(turns))]
    async with aclosing(run_job(job, turns, serving)) as pieces:
        async for piece in pieces:
            parts[piece.choice].append(writer.part(piece))
    choices = [writer.whole(mine, index) for index, mine in enumerate(parts)]
    return {**writer.head, "choices": choices, "usage": writer.usage()}


async def stream_text(job: CompletionJob, serving: Serving, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The response as server-sent events. Raises ApiError before the first event; later, one event tells the error."""
    turns = start_turns(job, serving)
    writer = TextWriter(job, turns, serving)
    tail: JsonObject = {"usage": None} if include_usage else {}

    def event(choice: JsonObject) -> bytes:
        return encode_event({**writer.head, "choices": [choice], **tail})

    started = False
    try:
        async with aclosing(run_job(job, turns, serving)) as pieces:
            async for piece in pieces:
                part = writer.part(piece)
                if part["text"] or part["logprobs"] or part.get("token_ids") or "prompt_token_ids" in part:
                    started = True
                    yield event(part)
    except ApiError as error:
        if not started:
            raise
        yield encode_event(error.body())
        return
    ends = [{**writer.begin(index), **writer.end(index)} for index in range(len(turns))]
    last = [encode_event({**writer.head, "choices": [], "usage": writer.usage()})] if include_usage else []
    yield b"".join([*map(event, ends), *last]) + DONE
