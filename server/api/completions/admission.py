"""Plans a text completion: from a checked body to a job."""

import time
from typing import cast

import msgspec

from server.api.chat.admission import mode_for
from server.api.completions.body import CompletionRequest
from server.core.answer_format import text_grammar
from server.core.job import CompletionJob, TurnPlan, new_id
from server.core.prompts import encode_prompts
from server.core.sampling import choices_of, known_ids, plan_sampling, priority_of, stops_of
from server.errors import BadRequestError
from server.modes.limits import token_limit
from server.modes.profile import ModeProfile
from server.serving import Serving

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_TURNS = 1024


async def admit_completion(asked: CompletionRequest, serving: Serving) -> CompletionJob:
    """Plans the job; raises ApiError."""
    arrived = time.perf_counter()
    mode = mode_for(asked.model, [], serving)
    profile = mode.profile
    _check_combinations(asked)
    prompts = await _prompts(asked, serving)
    grammar = await text_grammar(asked)
    turns = [turn for ids in prompts for turn in _turns(asked, ids, grammar, profile, serving)]
    return CompletionJob(
        id=new_id("cmpl"),
        arrived=arrived,
        mode=mode.name,
        turns=tuple(turns),
        prompt_tokens=sum(map(len, prompts)),
        stops=stops_of(asked),
        priority=priority_of(asked, profile, serving),
        shows_token_ids=bool(asked.return_token_ids),
        echoes=bool(asked.echo),
        generates=asked.max_tokens != 0,
    )


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
    several = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    if isinstance(several[0], str):
        ids = await encode_prompts(cast("list[str]", several), serving, serving.admit().max_context)
    else:
        ids = [known_ids(one, "prompt", serving) for one in cast("list[list[int]]", several)]
    if not all(ids):
        raise BadRequestError("prompt holds no token to go on from.", param="prompt")
    return ids


def _turns(
    asked: CompletionRequest, ids: list[int], grammar: str | None, profile: ModeProfile, serving: Serving
) -> list[TurnPlan]:
    context = serving.admit().max_context
    limit = token_limit(asked.max_tokens, "max_tokens", profile, len(ids), context, prompt="prompt")
    if asked.max_tokens is None:
        limit = min(limit, DEFAULT_MAX_TOKENS)
    sampling = plan_sampling(asked, profile, max(1, limit), serving)
    of_prompt = asked.logprobs if asked.echo else None
    sampling = msgspec.structs.replace(sampling, logprobs=asked.logprobs, prompt_logprobs=of_prompt, grammar=grammar)
    return [TurnPlan(ids, one) for one in choices_of(sampling, asked.n)]
