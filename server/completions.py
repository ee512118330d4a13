"""Text completions: from a checked body to a job, and the pieces of its choices to one response or a stream.

Response and stream are built from the same parts, which is why they are equal.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import msgspec

from server.admission import mode_for
from server.bodies.completion import CompletionRequest
from server.completion_objects import CompletionJob, TextWriter, join_parts
from server.errors import ApiError, BadRequestError, JsonObject
from server.job import TurnPlan, new_id
from server.limits import token_limit
from server.profile import ModeProfile
from server.prompts import encode_prompt
from server.run import run_job, start_turns
from server.sampling import choices_of, known_ids, plan_sampling, priority_of, stops_of
from server.serving import Serving
from server.sse import DONE, encode_event

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_TURNS = 1024


async def admit_completion(asked: CompletionRequest, serving: Serving) -> CompletionJob:
    """Plans the job; raises ApiError."""
    arrived = time.perf_counter()
    mode = mode_for(asked.model, [], serving)
    profile = serving.profile.of(mode)
    _check_combinations(asked)
    prompts = await _prompts(asked, serving)
    turns = [turn for ids in prompts for turn in _turns(asked, ids, profile, serving)]
    return CompletionJob(
        id=new_id("cmpl"),
        arrived=arrived,
        mode=mode,
        turns=tuple(turns),
        prompt_tokens=sum(map(len, prompts)),
        stops=stops_of(asked),
        priority=priority_of(asked, profile, serving),
        echoes=bool(asked.echo),
        generates=asked.max_tokens != 0,
    )


async def complete_text(job: CompletionJob, serving: Serving) -> JsonObject:
    """The whole response; raises ApiError."""
    turns = start_turns(job, serving)
    writer = TextWriter(job, turns, serving)
    parts = [[writer.begin(index)] for index in range(len(turns))]
    async with aclosing(run_job(job, turns, serving)) as pieces:
        async for piece in pieces:
            parts[piece.choice].append(writer.part(piece))
    choices = [{**join_parts(mine), "finish_reason": writer.finish_reason(index)} for index, mine in enumerate(parts)]
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
                if part["text"] or part["logprobs"]:
                    started = True
                    yield event(part)
    except ApiError as error:
        if not started:
            raise
        yield encode_event(error.body())
        return
    ends = [{**writer.begin(index), "finish_reason": writer.finish_reason(index)} for index in range(len(turns))]
    last = [encode_event({**writer.head, "choices": [], "usage": writer.usage()})] if include_usage else []
    yield b"".join([*map(event, ends), *last]) + DONE


def _check_combinations(asked: CompletionRequest) -> None:
    n = asked.n or 1
    if asked.best_of is not None and asked.best_of != n:
        raise BadRequestError(f"best_of is {asked.best_of} and n {n}: they must be the same.", param="best_of")
    if asked.max_tokens == 0 and not asked.echo:
        raise BadRequestError("max_tokens is 0, which leaves nothing to do without echo.", param="max_tokens")
    if isinstance(asked.prompt, list) and len(asked.prompt) * n > MAX_TURNS and not isinstance(asked.prompt[0], int):
        raise BadRequestError(f"n: {len(asked.prompt)} prompts with {n} choices each are too many.", param="n")


async def _prompts(asked: CompletionRequest, serving: Serving) -> list[list[int]]:
    prompt = asked.prompt
    several = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    ids = [
        await encode_prompt(one, serving)
        if isinstance(one, str)
        else known_ids(cast("list[int]", one), "prompt", serving)
        for one in several
    ]
    if not all(ids):
        raise BadRequestError("prompt holds no token to go on from.", param="prompt")
    return ids


def _turns(asked: CompletionRequest, ids: list[int], profile: ModeProfile, serving: Serving) -> list[TurnPlan]:
    context = serving.admit().max_context
    limit = token_limit(asked.max_tokens, "max_tokens", profile, len(ids), context, prompt="prompt")
    if asked.max_tokens is None:
        limit = min(limit, DEFAULT_MAX_TOKENS)
    sampling = plan_sampling(asked, profile, max(1, limit), serving)
    of_prompt = asked.logprobs if asked.echo else None
    sampling = msgspec.structs.replace(sampling, logprobs=asked.logprobs, prompt_logprobs=of_prompt)
    return [TurnPlan(ids, one) for one in choices_of(sampling, asked.n)]
