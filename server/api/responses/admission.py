"""From a checked body of `POST /v1/responses` to a request of the core, and to the items of its input."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from server.api.common.formats import ANY_OBJECT, TextFormat, forms_of
from server.api.common.sampling import logit_bias_of, sampling_of, stop_of
from server.api.common.thinking import mode_wish, shows_thinking, template_variables
from server.api.responses.body import ResponseRequest
from server.api.responses.conversation import Turns
from server.api.responses.items import Input, Item, ItemReference, Message, items_of, stored_form
from server.api.responses.store import ResponseStore, Stored, StoredInput
from server.api.responses.tools import ToolSet
from server.core.admission import admit
from server.core.plan import Plan
from server.core.request import Conversation, Form, JsonForm, Received, Request, Shown, new_id
from server.core.serving import Serving
from server.errors import BadRequestError, ContextLengthError, UnknownResponseError
from server.offload import read_long

NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "logprobs": "top_logprobs"}


class Asked(NamedTuple):
    """A request for the core, its tools, and its input, references resolved, as it may be stored."""

    request: Request
    tools: ToolSet
    inputs: StoredInput


async def response_request(asked: ResponseRequest, received: Received, store: ResponseStore) -> Asked:
    """What is asked. Raises BadRequestError."""
    before = _before(asked.previous_response_id, received.client, store)
    referred = _referred(asked.input, received.client, store)
    size = received.size + sum(stored.size for stored in [*before, *referred.values()])
    whole = msgspec.structs.replace(received, size=size)
    return await read_long(lambda: _asked(asked, whole, before, referred), size)


def _asked(
    asked: ResponseRequest, received: Received, before: Sequence[Stored], referred: Mapping[str, Stored]
) -> Asked:
    tools = ToolSet(asked.tools or [], asked.tool_choice, parallel=asked.parallel_tool_calls is not False)
    inputs = _inputs(asked, referred)
    turns = Turns(asked.instructions)
    for stored in before:
        turns.add(items_of(stored.items()))
    turns.add(inputs, "input")
    request = Request(
        id=new_id("resp", "_"),
        prompt=Conversation(turns.messages, tools.tools, variables=template_variables(asked)),
        tool_use=tools.use,
        received=received,
        model=asked.model,
        mode=mode_wish(asked),
        max_tokens=asked.max_output_tokens,
        sampling=sampling_of(asked),
        seed=asked.seed,
        logit_bias=logit_bias_of(asked),
        stop=stop_of(asked),
        forms=_forms(asked),
        shown=Shown(logprobs=_logprobs(asked), thinking=shows_thinking(asked)),
        priority=asked.priority,
        cache_salt=asked.cache_salt or "",
        streamed=bool(asked.stream),
        kept_whole=True,
        names={**NAMES, **tools.names, **turns.names},
    )
    kept = [] if asked.store is False else [stored_form(item) for item in inputs]
    return Asked(request, tools, StoredInput.of(kept))


async def admit_response(request: Request, serving: Serving, *, truncates: bool) -> Plan:
    """Plans the request; raises ApiError. `truncates`: without the oldest turns, where the context is too small."""
    try:
        return await admit(request, serving)
    except ContextLengthError:
        plan = await _truncated(request, serving) if truncates else None
        if plan is None:
            raise
        return plan


async def _truncated(request: Request, serving: Serving) -> Plan | None:
    """The plan that leaves out the fewest turns; None if none fits. What is kept begins with a user's message."""
    assert isinstance(request.prompt, Conversation)
    messages = request.prompt.messages
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    plan, low, high = None, 1, len(users)
    while low < high:
        middle = (low + high) // 2
        kept = [*messages[: users[0]], *messages[users[middle] :]]
        prompt = msgspec.structs.replace(request.prompt, messages=kept)
        try:
            plan = await admit(msgspec.structs.replace(request, prompt=prompt), serving)
            high = middle
        except ContextLengthError:
            low = middle + 1
    return plan


def _before(response_id: str | None, client: str, store: ResponseStore) -> list[Stored]:
    """The responses that are continued."""
    if response_id is None:
        return []
    try:
        return store.conversation(response_id, client)
    except UnknownResponseError as error:
        raise BadRequestError(
            f"previous_response_id cannot be continued. {error.message}",
            param="previous_response_id",
            code="previous_response_not_found",
        ) from None


def _referred(asked: Input | None, client: str, store: ResponseStore) -> dict[str, Stored]:
    """By the ids of items that are referred to, the responses that have them."""
    if asked is None or isinstance(asked, str):
        return {}
    found: dict[str, Stored] = {}
    for index, item in enumerate(asked):
        if isinstance(item, ItemReference):
            stored = store.holder(item.id, client)
            if stored is None:
                param = f"input[{index}].id"
                message = f"no item {item.id[:64]!r} is stored here, or not any more; send the item itself."
                raise BadRequestError(f"{param}: {message}", param=param)
            found[item.id] = stored
    return found


def _inputs(asked: ResponseRequest, referred: Mapping[str, Stored]) -> list[Item]:
    if asked.input is None:
        if asked.previous_response_id is None:
            raise BadRequestError("input: is required.", param="input")
        return []
    if isinstance(asked.input, str):
        return [Message(role="user", content=asked.input)]
    stored = {str(item["id"]): item for response in set(referred.values()) for item in response.items()}
    referred_to = dict(zip(referred, items_of([stored[item_id] for item_id in referred]), strict=True))
    return [referred_to[item.id] if isinstance(item, ItemReference) else item for item in asked.input]


def _forms(asked: ResponseRequest) -> tuple[Form, ...]:
    """What binds the answer; more than one contradict each other."""
    form = None if asked.text is None else asked.text.format
    others = forms_of(None, asked.structured_outputs)
    if form is None or isinstance(form, TextFormat):
        return others
    if form.schema_ is None:
        return (JsonForm("text.format", ANY_OBJECT), *others)
    return (JsonForm("text.format.schema", form.schema_), *others)


def _logprobs(asked: ResponseRequest) -> int | None:
    if asked.top_logprobs or "message.output_text.logprobs" in (asked.include or ()):
        return asked.top_logprobs or 0
    return None
