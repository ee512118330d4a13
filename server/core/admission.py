"""From a request to a plan for the engine: mode, prompt ids, form of the answer, and a plan for each choice.

Starts nothing; `server.core.run` runs the plan.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from engine.messages import Adapter
from server.core.answer_format import answer_format, named_tools
from server.core.choice_plans import choice_plans, forked, joined, without_choice
from server.core.plan import AnswerFormat, ChoicePlan, Plan, Queue
from server.core.prompts import encoded
from server.core.request import Conversation, Request
from server.core.response_size import check_size
from server.core.serving import Serving
from server.errors import UnknownModelError
from server.modes.limits import the_budget
from server.modes.mode import Auto, Mode
from server.modes.resolve import mode_of_model, model_names, resolve_mode
from server.modes.thinking import ModeRequest, ModeWish
from server.modes.variables import sorted_variables


class Served(NamedTuple):
    """What a request is for: the model under its listed name, or an adapter of it, in a mode."""

    name: str
    adapter: Adapter | None
    mode: Mode


async def admit(request: Request, serving: Serving) -> Plan:
    """Plans the request; raises ApiError."""
    try:
        request = with_variables(request, serving)
        record = request.received.record
        record.client, record.n, record.streamed = request.received.client, request.n, request.streamed
        served = find_model(request.model, serving, request.mode.requests, field=request.name("model"))
        mode = served.mode
        record.mode, record.model = mode.name, served.name
        count = request.most_choices
        most = serving.intake.most_choices
        if count > most:
            raise request.refusal("n", f"{{field}}: {count} choices are more than the {most} taken at once here.")
        with serving.intake.preparing(mode.begins_in.name, count):
            return await _plan(_owned(request, served), served, serving)
    finally:
        request.received.planned()


def find_model(
    model: str | None, serving: Serving, requests: Sequence[ModeRequest] = (), *, field: str = "model"
) -> Served:
    """What a request for `model` is for, which came in `field`; raises BadRequestError or UnknownModelError."""
    own, modes, adapters = serving.settings.model_name, serving.modes, serving.adapters.by_name
    if model is None:
        return Served(own, None, resolve_mode(requests, modes))
    for name, adapter in {own: None, **adapters}.items():
        if model.startswith(name) and model in model_names(name, modes):
            named = mode_of_model(model, name, modes, field)
            return Served(name, adapter, resolve_mode([named, *requests], modes))
    raise UnknownModelError(model, own, field, adapters=list(adapters))


def _owned(request: Request, served: Served) -> Request:
    """For an adapter, apart from what others make the model write."""
    return request if served.adapter is None else msgspec.structs.replace(request, adapter_id=served.adapter.id)


def with_variables(request: Request, serving: Serving) -> Request:
    """The request with what it says of mode and thinking in the chat template's variables, and without these; raises
    BadRequestError.
    """
    prompt, modes = request.prompt, serving.modes
    if not isinstance(prompt, Conversation):
        return request
    said, rest = sorted_variables(prompt.variables, modes, request.name("chat_template_kwargs"))
    wish = ModeWish([*request.mode.requests, *said.requests], [*request.mode.budgets, *said.budgets])
    if not wish.budgets and modes.budget is not None:
        wish = wish._replace(budgets=[modes.budget])
    return msgspec.structs.replace(request, mode=wish, prompt=msgspec.structs.replace(prompt, variables=rest))


async def _plan(request: Request, served: Served, serving: Serving) -> Plan:
    mode = served.mode
    caller = request.received.caller
    caller.check(mode.name, request.most_choices, request.name("n"))
    prompts = await encoded(request, mode, serving, serving.admit().max_context)
    if not all(prompts):
        raise request.refusal(request.prompt_path, "{field} holds no token to go on from.")
    form = await answer_format(request, serving)
    choices = [choice for ids in prompts for choice in choice_plans(request, mode, ids, form, serving)]
    if mode.auto is not None:
        choices = await _drafted(request, mode.auto, choices, form, serving)
    modes = _modes_run(mode, choices)
    check_size(request, choices, serving)
    if request.priority and not (serving.settings.allow_priority or caller.may_set_priority):
        raise request.refusal("priority", "{field} is the server's to set; it was started without --allow-priority.")
    return Plan(
        id=request.id,
        record=request.received.record,
        caller=caller,
        model=served.name,
        adapter=served.adapter,
        mode=mode.name,
        choices=tuple(choices),
        prompt_tokens=_prompt_tokens(choices),
        stop=request.stop,
        queues=tuple(Queue(one.name, request.priority or one.profile.priority) for one in modes),
        tells_mode=mode.auto is not None,
        is_conversation=isinstance(request.prompt, Conversation),
        shows_thinking=modes[-1].thinks and request.shown.thinking,
        reasoning_logprobs=request.shown.reasoning_logprobs,
        shows_token_ids=request.shown.token_ids,
        shows_control_tokens=request.shown.control_tokens,
        logprobs_as_ids=request.shown.tokens_as_ids,
        answer_format=form,
        owner=request.owner,
        cache_salt=_salt(request, serving),
        keeps_entries=request.kept_whole or not request.streamed,
    )


async def _drafted(
    request: Request, auto: Auto, choices: list[ChoicePlan], form: AnswerFormat, serving: Serving
) -> list[ChoicePlan]:
    """The choices of a mode that thinks, each beginning as a draft; without one where no thinking can follow."""
    only = without_choice(auto, choices[0], request)
    if only is auto.thinking:
        return choices
    if only is None and auto.rule.asks_model:
        return forked(request, auto, choices, form, serving)
    prompts = await encoded(request, auto.direct, serving, serving.admit().max_context)
    direct = [choice for ids in prompts for choice in choice_plans(request, auto.direct, ids, form, serving)]
    if only is not None:
        return direct
    return [joined(auto.rule, *both) for both in zip(direct, choices, strict=True)]


def _modes_run(mode: Mode, choices: Sequence[ChoicePlan]) -> list[Mode]:
    """The modes that the choices are in, in turn; they are alike in that."""
    if mode.auto is None:
        return [mode]
    both = {one.name: one for one in (mode.auto.direct, mode.auto.thinking)}
    last = both[choices[0].mode]
    return [last] if choices[0].draft is None else [mode.auto.direct, last]


def _prompt_tokens(choices: Sequence[ChoicePlan]) -> int:
    """Of all prompts, each counted once."""
    prompts = {id(choice.prompt_ids): choice.prompt_ids for choice in choices}
    return sum(map(len, prompts.values()))


def _salt(request: Request, serving: Serving) -> str:
    """Of the engine's pages: the client's own, and where keys are isolated, apart for each key."""
    client = request.received.client
    if not (client and serving.settings.isolate_keys):
        return request.cache_salt
    return hashlib.sha256(json.dumps([client, request.cache_salt]).encode()).hexdigest()


async def prompt_ids(request: Request, serving: Serving) -> list[int]:
    """The prompt of a request that is only to be counted; raises ApiError for what `admit` would refuse in it, too."""
    request = with_variables(request, serving)
    the_budget(request.mode.budgets)
    served = find_model(request.model, serving, request.mode.requests, field=request.name("model"))
    (ids,) = await encoded(_owned(request, served), served.mode, serving)
    named_tools(request)
    return ids
