"""From a request to a plan for the engine: mode, prompt ids, token limit, thinking plan, sampling, form of the answer.

Starts nothing; `server.core.run` runs the plan.
"""

from collections.abc import Sequence

import msgspec

from chat_templates.format import NO_TOKEN
from engine.messages import Sampling
from server.core.answer_format import answer_format
from server.core.plan import AnswerFormat, ChoicePlan, Plan
from server.core.prompts import prompt_ids
from server.core.request import Conversation, Request
from server.core.sampling import answer_sampling, choices_of, plan_sampling, priority_of
from server.core.serving import Serving
from server.modes.limits import plan_thinking, the_budget, token_limit
from server.modes.mode import Mode
from server.modes.profile import ThinkingMode
from server.modes.resolve import ModeRequest, mode_of_model, resolve_mode

NEVER = -100.0  # a bias that no token survives


async def admit(request: Request, serving: Serving) -> Plan:
    """Plans the request; raises ApiError."""
    the_budget(request.mode.budgets)
    mode = find_mode(request.model, serving, request.mode.requests, field=request.name("model"))
    context = serving.admit().max_context
    prompts = await prompt_ids(request, mode, serving, context)
    if not all(prompts):
        raise request.refusal(_prompt_path(request), "{field} holds no token to go on from.")
    drawn = [_sampling(request, mode, len(ids), context, serving) for ids in prompts]
    form = await answer_format(request, serving)
    return Plan(
        id=request.id,
        arrived=request.arrived,
        mode=mode.name,
        choices=tuple(
            choice
            for ids, sampling in zip(prompts, drawn, strict=True)
            for choice in _choices(request, mode, ids, _with_format(sampling, form, serving), serving)
        ),
        prompt_tokens=sum(map(len, prompts)),
        stops=request.stop.texts,
        priority=priority_of(request, mode.profile, serving),
        is_conversation=isinstance(request.prompt, Conversation),
        shows_thinking=mode.thinks and request.shown.thinking,
        reasoning_logprobs=request.shown.reasoning_logprobs,
        shows_token_ids=request.shown.token_ids,
        answer_format=form,
    )


def find_mode(
    model: str | None, serving: Serving, requests: Sequence[ModeRequest] = (), *, field: str = "model"
) -> Mode:
    """The mode of a request for `model`, which came in `field`; raises BadRequestError or UnknownModelError."""
    named = None if model is None else mode_of_model(model, serving.settings.model_name, serving.modes, field)
    return resolve_mode([named, *requests], serving.modes)


def _sampling(request: Request, mode: Mode, prompt_tokens: int, context: int, serving: Serving) -> Sampling:
    """How the first choice after a prompt is drawn, up to its form; raises BadRequestError."""
    prompt, field = request.name(_prompt_path(request)), request.name("max_tokens")
    limit = token_limit(request.max_tokens, field, mode.profile, prompt_tokens, context, prompt=prompt)
    if request.max_tokens is None and request.default_max_tokens is not None:
        limit = min(limit, request.default_max_tokens)
    return plan_sampling(request, mode.profile, max(1, limit), serving)


def _prompt_path(request: Request) -> str:
    return "messages" if isinstance(request.prompt, Conversation) else "prompt"


def _choices(request: Request, mode: Mode, ids: list[int], sampling: Sampling, serving: Serving) -> list[ChoicePlan]:
    """The choices after one prompt."""
    thinking = None
    if mode.closing is not None and _opens_thinking(request, ids, serving):
        assert isinstance(mode.profile, ThinkingMode)
        budget = the_budget(request.mode.budgets)
        tokens = None if budget is None else budget.tokens(mode.profile, sampling.max_tokens)
        thinking = plan_thinking(sampling.max_tokens, tokens, mode.profile, mode.closing)
    return [
        ChoicePlan(ids, one, thinking, answer_sampling(request, mode.profile, one))
        for one in choices_of(sampling, request.n)
    ]


def _opens_thinking(request: Request, ids: list[int], serving: Serving) -> bool:
    """Whether thinking is open at the end of a prompt in a mode that thinks: raw prompts have no template."""
    prompt = request.prompt
    if not isinstance(prompt, Conversation):
        return False
    return (prompt.opens_turn and not prompt.continues) or serving.fmt.is_thinking_open(ids)


def _with_format(sampling: Sampling, form: AnswerFormat, serving: Serving) -> Sampling:
    bias = sampling.logit_bias
    if form.forbids_calls and serving.fmt.tool_call_id != NO_TOKEN:
        bias = {**(bias or {}), serving.fmt.tool_call_id: NEVER}
    return msgspec.structs.replace(sampling, grammar=form.grammar, logit_bias=bias)
