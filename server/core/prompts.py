"""Client text to prompt ids, away from the event loop where it is long, and refused early where it is far too long."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from chat_templates.errors import FormatError
from chat_templates.tokens import Vocabulary
from server.errors import BadRequestError, ContextLengthError
from server.offload import read_long
from server.serving import Serving

T = TypeVar("T")

COUNTED_BEYOND = 32_768  # tokens by which a prompt may be too long and still be counted out for the error
BYTES_A_TOKEN = 2  # text with fewer bytes for each token that is allowed is not worth a count of its own
TOKENS_A_MESSAGE = 2  # at least: where it begins and where it ends


async def encode_prompts(texts: Sequence[str], serving: Serving, context: int | None = None) -> list[list[int]]:
    """The ids of raw prompts, none of them a control token; raises BadRequestError.

    With a `context`, one that is too long for it by far is refused before it is tokenized.
    """

    def encode(text: str) -> list[int]:
        if context is not None:
            _refuse_endless(text, 0, serving.fmt.vocabulary, context, "prompt")
        return serving.fmt.encode_prompt(text)

    return await to_ids(lambda: [encode(text) for text in texts], sum(map(len, texts)), "prompt")


async def to_ids(work: Callable[[], T], size: int, param: str | None = None) -> T:
    """The ids that `work` yields for about `size` bytes; raises BadRequestError, for `param` if that is set."""
    try:
        return await read_long(work, size)
    except FormatError as error:
        raise BadRequestError(error.message, param=param or error.param) from None


def refuse_endless_chat(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[object], serving: Serving, context: int
) -> None:
    """Raises ContextLengthError for a conversation that is too long by far, before time is spent on rendering it."""
    least = TOKENS_A_MESSAGE * len(messages)
    _refuse_endless(_text(messages, tools), least, serving.fmt.vocabulary, context, "messages")


def _refuse_endless(text: str, least: int, vocabulary: Vocabulary, context: int, param: str) -> None:
    """`least`: how many tokens there are beside those of `text`."""
    enough = context + COUNTED_BEYOND
    if least < enough and len(text.encode(errors="replace")) > BYTES_A_TOKEN * (enough - least):
        least += vocabulary.least_tokens(text, enough - least)
    if least >= enough:
        raise ContextLengthError(context, least, 1, param, is_least=True)


def _text(messages: Sequence[Mapping[str, Any]], tools: Sequence[object]) -> str:
    """What certainly comes to stand in the prompt, as far as it is text at all: that is checked later."""
    parts: list[object] = []
    for message in messages:
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):
            parts += [part.get("text") for part in content if isinstance(part, dict)]
        else:
            parts.append(content)
        functions = (
            [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
        )
        parts += [_written(function.get("arguments")) for function in functions if isinstance(function, dict)]
    return "".join(part for part in [*parts, _written(tools)] if isinstance(part, str))


def _written(value: object) -> str:
    """JSON as text, which it may be already."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False) if value else ""
    except RecursionError:  # refused later, for its depth
        return ""
