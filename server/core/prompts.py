"""A request's prompt to token ids, away from the event loop where it is long. One far too long is refused early."""

import json
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from chat_templates.errors import FormatError
from chat_templates.limits import TooSlowError, at_most
from chat_templates.tokens import Vocabulary
from server.core.request import Conversation, Request, Texts
from server.core.serving import Serving
from server.core.token_ids import known_ids
from server.errors import BadRequestError, ContextLengthError
from server.modes.limits import the_budget
from server.modes.mode import Mode
from server.offload import LONG, PROMPTS, offload_long, read_long

T = TypeVar("T")

COUNTED_BEYOND = 32_768  # tokens by which a prompt may be too long and still be counted out for the error
BYTES_A_TOKEN = 2  # text with fewer bytes for each token that is allowed is not worth a count of its own
QUICK_SECONDS = 0.02  # of a template on the event loop
TOKENS_A_MESSAGE = 2  # at least: where it begins and where it ends


async def encoded(request: Request, mode: Mode, serving: Serving, context: int | None = None) -> list[list[int]]:
    """The ids of the prompts: one of a conversation, any number of raw ones. Raises BadRequestError.

    With a `context`, a text that is too long for it by far is refused before it is tokenized.
    """
    prompt = request.prompt
    if isinstance(prompt, Conversation):
        return [await _conversation(prompt, request, mode, serving, context)]
    if isinstance(prompt, Texts):
        return await _texts(prompt, request, serving, context)
    field, size = request.name("prompt"), sum(map(len, prompt.prompts))
    return await read_long(lambda: [list(known_ids(ids, field, serving)) for ids in prompt.prompts], size)


async def _conversation(
    prompt: Conversation, request: Request, mode: Mode, serving: Serving, context: int | None
) -> list[int]:
    """In the mode's template. An answer that comes back has the ids that the model wrote."""
    style = mode.style_for(the_budget(request.mode.budgets), serving.modes.given, prompt.variables)
    messages = prompt.messages
    if serving.profile.recalls_thinking and isinstance(messages, list):
        messages = serving.thoughts.filled(messages, request.owner)
    render = partial(
        serving.fmt.render,
        messages,
        style,
        prompt.tools,
        add_generation_prompt=prompt.opens_turn,
        continue_final_message=prompt.continues,
    )

    def checked() -> list[int]:
        if context is not None and request.received.size >= LONG:
            field = request.name("messages")
            least = TOKENS_A_MESSAGE * len(prompt.messages)
            _refuse_endless(_text(prompt), least, serving.fmt.vocabulary, context, field)
        return serving.generated.restored(render(), request.owner)

    return await _to_ids(checked, request.received.size, request)


async def _texts(prompt: Texts, request: Request, serving: Serving, context: int | None) -> list[list[int]]:
    """None of the ids is a control token."""

    def encode(text: str) -> list[int]:
        if context is not None:
            _refuse_endless(text, 0, serving.fmt.vocabulary, context, request.name("prompt"))
        return serving.fmt.encode_prompt(text)

    size = sum(map(len, prompt.texts))
    return await _to_ids(lambda: [encode(text) for text in prompt.texts], size, request, "prompt")


async def _to_ids(work: Callable[[], T], size: int, request: Request, path: str | None = None) -> T:
    """The ids that `work` yields for about `size` bytes; raises BadRequestError, for the field at `path` if set."""
    try:
        return await _within_time(work, size)
    except FormatError as error:
        path = path or error.param
        field = request.name(path)
        message = error.message if field == path else f"{field}: {error.message}"
        raise BadRequestError(message, param=field) from None


async def _within_time(work: Callable[[], T], size: int) -> T:
    """Away from the event loop also where a template turns out to take long."""
    if size < LONG:
        try:
            with at_most(QUICK_SECONDS):
                return work()
        except TooSlowError:
            pass
    return await offload_long(PROMPTS, work)


def _refuse_endless(text: str, least: int, vocabulary: Vocabulary, context: int, param: str) -> None:
    """`least`: how many tokens there are beside those of `text`."""
    enough = context + COUNTED_BEYOND
    if least < enough and len(text.encode(errors="replace")) > BYTES_A_TOKEN * (enough - least):
        least += vocabulary.least_tokens(text, enough - least)
    if least >= enough:
        raise ContextLengthError(context, least, 1, param, is_least=True)


def _text(prompt: Conversation) -> str:
    """What certainly comes to stand in the prompt, as far as it is text at all: that is checked later."""
    parts: list[object] = []
    for message in prompt.messages:
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):
            parts += [part.get("text") for part in content if isinstance(part, dict)]
        else:
            parts.append(content)
        functions = (
            [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
        )
        parts += [_written(function.get("arguments")) for function in functions if isinstance(function, dict)]
    return "".join(part for part in [*parts, _written(prompt.tools)] if isinstance(part, str))


def _written(value: object) -> str:
    """JSON as text, which it may be already."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False) if value else ""
    except RecursionError:  # refused later, for its depth
        return ""
