"""From a checked body to a job for the engine: mode, prompt ids, token limit, thinking plan, sampling.

The one place where a client's fields and the mode's defaults meet. Starts nothing; `server.chat` runs the job.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from chat_templates.errors import FormatError
from server.bodies.chat import ChatRequest
from server.dialects import Budget, thinking_wish
from server.errors import BadRequestError
from server.limits import ThinkingPlan, plan_thinking, token_limit
from server.messages import Sampling
from server.modes import Choice, mode_of_model, resolve_mode
from server.profile import Mode, ModeProfile, ThinkingProfile
from server.serving import Serving

T = TypeVar("T")

LONG_PROMPT = 32_768  # bytes of a body from which rendering would hold up other requests' tokens


@dataclass(frozen=True, kw_only=True)
class Job:
    """One chat completion, ready to run. `created` in Unix seconds, `arrived` on the clock of perf_counter.

    `shows_thinking`: whether the response has the thinking, of which the mode may have none.
    """

    id: str
    created: int
    arrived: float
    mode: Mode
    shows_thinking: bool
    prompt_ids: list[int]
    sampling: Sampling
    thinking: ThinkingPlan | None
    stops: tuple[str, ...]
    priority: int


class AskedLimit(NamedTuple):
    """The client's token limit and the field that it came in."""

    tokens: int | None
    param: str


async def admit_chat(asked: ChatRequest, size: int, serving: Serving) -> Job:
    """Plans the job; `size` is the body's, in bytes. Raises ApiError."""
    arrived = time.perf_counter()
    wish = thinking_wish(asked)
    mode = chat_mode(asked.model, wish.choices, serving)
    context = serving.admit().max_context
    profile = serving.profile.of(mode)
    prompt_ids = await _render(asked, profile.template, size, serving)
    limit = _asked_limit(asked)
    max_tokens = token_limit(limit.tokens, limit.param, profile, len(prompt_ids), context)
    return Job(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        created=int(time.time()),
        arrived=arrived,
        mode=mode,
        shows_thinking=mode == "reasoning" and wish.is_shown,
        prompt_ids=prompt_ids,
        sampling=_sampling(asked, profile, max_tokens, serving),
        thinking=_thinking(wish.budget, profile, max_tokens, serving),
        stops=_stops(asked),
        priority=profile.priority,
    )


def chat_mode(name: str | None, choices: list[Choice | None], serving: Serving) -> Mode:
    """The mode of a request for the model `name` that made `choices`; raises BadRequestError or UnknownModelError."""
    model = None if name is None else mode_of_model(name, serving.settings.model_name)
    return resolve_mode([model, *choices], serving.profile.default_mode)


async def _render(asked: ChatRequest, template: Mode, size: int, serving: Serving) -> list[int]:
    try:
        if size < LONG_PROMPT:
            return serving.fmt.render(asked.messages, template)
        return await asyncio.to_thread(serving.fmt.render, asked.messages, template)
    except FormatError as error:
        raise BadRequestError(error.message, param=error.param) from None


def _asked_limit(asked: ChatRequest) -> AskedLimit:
    new, old = asked.max_completion_tokens, asked.max_tokens
    if new is not None and old is not None and new != old:
        raise BadRequestError(
            f"max_completion_tokens is {new} and max_tokens {old}: send only one of them.", param="max_tokens"
        )
    return AskedLimit(old, "max_tokens") if new is None else AskedLimit(new, "max_completion_tokens")


def _thinking(budget: Budget | None, profile: ModeProfile, max_tokens: int, serving: Serving) -> ThinkingPlan | None:
    if not isinstance(profile, ThinkingProfile):
        return None
    tokens = None if budget is None else budget.tokens(profile, max_tokens)
    return plan_thinking(max_tokens, tokens, profile, serving.wrap_ups, serving.closing)


def _sampling(asked: ChatRequest, profile: ModeProfile, max_tokens: int, serving: Serving) -> Sampling:
    min_tokens = asked.min_tokens or 0
    if min_tokens > max_tokens:
        raise BadRequestError(f"min_tokens is {min_tokens}, above the limit of {max_tokens}.", param="min_tokens")
    return Sampling(
        max_tokens=max_tokens,
        temperature=_either(asked.temperature, profile.temperature),
        top_p=_either(asked.top_p, profile.top_p),
        top_k=max(0, _either(asked.top_k, profile.top_k)),
        min_p=_either(asked.min_p, profile.min_p),
        presence_penalty=_either(asked.presence_penalty, profile.presence_penalty),
        frequency_penalty=_either(asked.frequency_penalty, profile.frequency_penalty),
        repetition_penalty=_either(asked.repetition_penalty, profile.repetition_penalty),
        seed=asked.seed,
        min_tokens=min_tokens,
        ignore_eos=bool(asked.ignore_eos),
        stop_token_ids=tuple(_known_ids(asked.stop_token_ids or [], "stop_token_ids", serving)),
        logit_bias=_logit_bias(asked, serving),
    )


def _either(asked: T | None, default: T) -> T:
    return default if asked is None else asked


def _logit_bias(asked: ChatRequest, serving: Serving) -> dict[int, float] | None:
    if not asked.logit_bias:
        return None
    bad = next((key for key in asked.logit_bias if not (key.isascii() and key.isdigit() and len(key) < 10)), None)
    if bad is not None:
        raise BadRequestError("logit_bias: the keys must be token ids.", param="logit_bias")
    ids = _known_ids([int(key) for key in asked.logit_bias], "logit_bias", serving)
    return dict(zip(ids, asked.logit_bias.values(), strict=True))


def _known_ids(ids: list[int], param: str, serving: Serving) -> list[int]:
    unknown = [token_id for token_id in ids if not serving.fmt.vocabulary.token_text(token_id)]
    if unknown:
        raise BadRequestError(f"{param}: the model has no token {unknown[0]}.", param=param)
    return ids


def _stops(asked: ChatRequest) -> tuple[str, ...]:
    return (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
