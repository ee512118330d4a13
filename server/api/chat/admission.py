"""From a checked chat body to a job for the engine: mode, prompt ids, token limit, thinking plan, sampling.

Starts nothing; `server.core.run` runs the job.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from chat_templates.format import NO_TOKEN
from engine.messages import Sampling
from server.api.chat.body import ChatRequest
from server.core.answer_format import answer_format
from server.core.job import AnswerFormat, Job, TurnPlan, new_id
from server.core.prompts import refuse_endless_chat, to_ids
from server.core.sampling import answer_sampling, choices_of, plan_sampling, priority_of, stops_of
from server.errors import BadRequestError
from server.modes.dialects import Budget, thinking_wish
from server.modes.limits import ThinkingPlan, plan_thinking, token_limit
from server.modes.mode import Mode
from server.modes.profile import ThinkingMode
from server.modes.resolve import ModeRequest, mode_of_model, resolve_mode
from server.offload import LONG
from server.serving import Serving

NEVER = -100.0  # a bias that no token survives


class AskedLimit(NamedTuple):
    """The client's token limit and the field that it came in."""

    tokens: int | None
    param: str


async def admit_chat(asked: ChatRequest, size: int, serving: Serving) -> Job:
    """Plans the job; `size` is the body's, in bytes. Raises ApiError."""
    arrived = time.perf_counter()
    wish = thinking_wish(asked)
    mode = mode_for(asked.model, wish.modes, serving)
    context = serving.admit().max_context
    profile = mode.profile
    prompt_ids = await chat_prompt(asked, mode, size, serving, context)
    limit = _asked_limit(asked)
    max_tokens = token_limit(limit.tokens, limit.param, profile, len(prompt_ids), context)
    sampling = _with_logprobs(plan_sampling(asked, profile, max_tokens, serving), asked)
    form = await answer_format(asked, serving)
    sampling = _with_format(sampling, form, serving)
    opens_thinking = mode.thinks and (_opens_turn(asked) or serving.fmt.is_thinking_open(prompt_ids))
    thinking = _thinking(wish.budget, mode, max_tokens) if opens_thinking else None
    return Job(
        id=new_id("chatcmpl"),
        arrived=arrived,
        mode=mode.name,
        turns=tuple(
            TurnPlan(prompt_ids, one, thinking, answer_sampling(asked, profile, one))
            for one in choices_of(sampling, asked.n)
        ),
        prompt_tokens=len(prompt_ids),
        stops=stops_of(asked),
        priority=priority_of(asked, profile, serving),
        shows_thinking=mode.thinks and wish.is_shown,
        reasoning_logprobs=bool(asked.reasoning_logprobs),
        shows_token_ids=bool(asked.return_token_ids),
        answer_format=form,
    )


def mode_for(name: str | None, requests: Sequence[ModeRequest | None], serving: Serving) -> Mode:
    """The mode of a request for the model `name` that makes `requests`; BadRequestError or UnknownModelError."""
    model = None if name is None else mode_of_model(name, serving.settings.model_name, serving.modes)
    return resolve_mode([model, *requests], serving.modes)


async def chat_prompt(
    asked: ChatRequest, mode: Mode, size: int, serving: Serving, context: int | None = None
) -> list[int]:
    """The prompt's ids in that mode; `size` is the body's, in bytes. Raises BadRequestError.

    With a `context`, one that is too long for it by far is refused before it is tokenized.
    """
    if asked.add_generation_prompt and asked.continue_final_message:
        raise BadRequestError(
            "add_generation_prompt and continue_final_message contradict each other: send only one of them.",
            param="continue_final_message",
        )
    render = partial(
        serving.fmt.render,
        asked.messages,
        mode.style,
        asked.tools or (),
        add_generation_prompt=asked.add_generation_prompt is not False,
        continue_final_message=bool(asked.continue_final_message),
    )

    def checked() -> list[int]:
        if context is not None and size >= LONG:
            refuse_endless_chat(asked.messages, asked.tools or (), serving, context)
        return serving.written.restored(render())

    return await to_ids(checked, size)


def _asked_limit(asked: ChatRequest) -> AskedLimit:
    new, old = asked.max_completion_tokens, asked.max_tokens
    if new is not None and old is not None and new != old:
        raise BadRequestError(
            f"max_completion_tokens is {new} and max_tokens {old}: send only one of them.", param="max_tokens"
        )
    return AskedLimit(old, "max_tokens") if new is None else AskedLimit(new, "max_completion_tokens")


def _opens_turn(asked: ChatRequest) -> bool:
    return asked.add_generation_prompt is not False and not asked.continue_final_message


def _thinking(budget: Budget | None, mode: Mode, max_tokens: int) -> ThinkingPlan:
    assert isinstance(mode.profile, ThinkingMode)
    assert mode.closing is not None
    tokens = None if budget is None else budget.tokens(mode.profile, max_tokens)
    return plan_thinking(max_tokens, tokens, mode.profile, mode.closing)


def _with_logprobs(sampling: Sampling, asked: ChatRequest) -> Sampling:
    if asked.logprobs:
        return msgspec.structs.replace(sampling, logprobs=asked.top_logprobs or 0)
    for name, value in (("top_logprobs", asked.top_logprobs), ("reasoning_logprobs", asked.reasoning_logprobs)):
        if value:
            raise BadRequestError(f"{name} needs logprobs: set it to true.", param=name)
    return sampling


def _with_format(sampling: Sampling, form: AnswerFormat, serving: Serving) -> Sampling:
    bias = sampling.logit_bias
    if form.forbids_calls and serving.fmt.tool_call_id != NO_TOKEN:
        bias = {**(bias or {}), serving.fmt.tool_call_id: NEVER}
    return msgspec.structs.replace(sampling, grammar=form.grammar, logit_bias=bias)
