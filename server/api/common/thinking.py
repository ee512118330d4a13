"""The fields that ask for a mode and bound the thinking: our own, and those of the peers' dialects, as one table.

They mix freely as long as they agree, which `server.modes` sees to. An API that has only some of them, or others, takes
its own table to `mode_wish`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator

from server.api.common.fields import INT64, Fields, tag_of
from server.api.common.openapi import SERVED_MODES
from server.api.common.sampling import TokenCount
from server.errors import BadRequestError
from server.modes.thinking import ADAPTIVE, UNBOUND, Budget, ModeRequest, ModeWish, Wanted

ModeName = Annotated[str, Field(json_schema_extra={SERVED_MODES: True})]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Bound = Annotated[int, Field(ge=UNBOUND, le=INT64)]


def _kind_of_think(value: object) -> str | None:
    return "(switch)" if isinstance(value, bool) else tag_of(value)


ThinkField = Annotated[
    Annotated[bool, Tag("(switch)")] | Annotated[Effort, Tag("(text)")],
    Discriminator(_kind_of_think, custom_error_type="think", custom_error_message="must be true, false or an effort"),
]


class ReasoningOptions(Fields):
    """OpenRouter's way to ask for thinking."""

    enabled: bool | None = None
    """True is the profile's mode for thinking, false the one that answers at once."""
    effort: Effort | None = None
    """As `reasoning_effort`."""
    max_tokens: Bound | None = None
    """The most tokens of thinking; -1: the token limit alone bounds it."""
    exclude: bool | None = None
    """True: think, but leave the thinking out of the response."""


class ThinkingOptions(Fields):
    """Anthropic's and DeepSeek's way to ask for thinking."""

    type: Literal["enabled", "disabled", "adaptive"]
    """`enabled` is the profile's mode for thinking, `disabled` the one that answers at once; `adaptive` the one that
    decides, of kind `auto`, and where the profile has none, the mode for thinking.

    Differs: with `adaptive` Anthropic's models choose whether they think.
    """
    budget_tokens: TokenCount | None = None
    """The most tokens of thinking."""


class ChatTemplateKwargs(Fields):
    """vLLM's and SGLang's way to ask for thinking, and to tell the model's chat template more. Which variables it takes
    is the profile's to say; an error names them. Strings in them are text, no control tokens.
    """

    model_config = ConfigDict(extra="allow")

    enable_thinking: bool | None = None
    """True is the profile's mode for thinking, false the one that answers at once."""
    thinking: bool | None = None
    """The same, by the name that DeepSeek's and Granite's templates have for it."""


class ThinkingFields(Fields):
    """All ways to ask for a mode."""

    reasoning_mode: ModeName | None = None
    """A mode of the served profile: template, sampling and token limits of the request, all at once.

    Differs: in no other API.
    """
    reasoning_effort: Effort | None = None
    """`none` is the profile's mode that answers at once. The others are its mode for thinking, with a growing share of
    the token limit for the thinking; with `max`, all but the answer's reserve.

    Differs: to OpenAI a hint for the model, here a bound that holds.
    """
    reasoning: ReasoningOptions | None = None
    """OpenRouter's way to ask for thinking.

    Differs: not in OpenAI's chat API.
    """
    thinking: ThinkingOptions | None = None
    """Anthropic's and DeepSeek's way to ask for thinking.

    Differs: not in OpenAI's API.
    """
    chat_template_kwargs: ChatTemplateKwargs | None = None
    """vLLM's and SGLang's way to ask for thinking.

    Differs: not in OpenAI's API; variables that the profile does not list are refused.
    """
    thinking_token_budget: Bound | None = None
    """The most tokens of thinking, wrap-up included; -1: the token limit alone bounds it. In a mode that does not think
    it has no effect.

    Differs: not in OpenAI's API; in vLLM the phrase that ends the thinking is shown and the server's own.
    """
    enable_thinking: bool | None = None
    """As in `chat_template_kwargs`: how Alibaba's and SiliconFlow's APIs ask for thinking.

    Differs: not in OpenAI's API.
    """
    think: ThinkField | None = None
    """Ollama's way to ask for thinking: true, false, or an effort.

    Differs: not in OpenAI's API.
    """
    thinking_budget: Bound | None = None
    """The most tokens of thinking, as Alibaba's and SiliconFlow's APIs call it; -1 is no bound, 0 no thinking.

    Differs: not in OpenAI's API.
    """
    thinking_budget_tokens: Bound | None = None
    """The same, as in llama.cpp.

    Differs: not in OpenAI's API.
    """
    reasoning_budget: Bound | None = None
    """The same, by the name of llama.cpp's option.

    Differs: not in OpenAI's API.
    """
    include_reasoning: bool | None = None
    """False: think, but leave the thinking out of the response, as with `reasoning.exclude`.

    Differs: not in OpenAI's API; vLLM's and OpenRouter's.
    """
    separate_reasoning: bool | None = None
    """The thinking never stands in the answer; false is refused.

    Differs: not in OpenAI's API; SGLang's.
    """
    stream_reasoning: bool | None = None
    """A stream has the thinking as it comes; false is refused.

    Differs: not in OpenAI's API; SGLang's.
    """

    @field_validator("separate_reasoning", "stream_reasoning")
    @classmethod
    def _not_false(cls, value: bool | None) -> bool | None:
        if value is False:
            raise ValueError("false is not supported; include_reasoning leaves the thinking out")
        return value


def _thinks(effort: str) -> bool:
    return effort != "none"


def thinking_type(kind: str) -> Wanted:
    """What a value of `thinking.type` asks for."""
    return ADAPTIVE if kind == "adaptive" else kind == "enabled"


def _always(_value: object) -> bool:
    return True


def _think(value: bool | str) -> bool:
    return value not in (False, "none")


def _any_tokens(tokens: int) -> bool:
    return tokens != 0


MODE_FIELDS: Mapping[str, Callable[[Any], Wanted]] = {
    "reasoning_mode": str,
    "reasoning_effort": _thinks,
    "reasoning.enabled": bool,
    "reasoning.effort": _thinks,
    "reasoning.max_tokens": _always,
    "thinking.type": thinking_type,
    "thinking.budget_tokens": _always,
    "chat_template_kwargs.enable_thinking": bool,
    "chat_template_kwargs.thinking": bool,
    "enable_thinking": bool,
    "think": _think,
    "thinking_budget": _any_tokens,
    "thinking_budget_tokens": _any_tokens,
    "reasoning_budget": _any_tokens,
}
"""From each field that asks for a mode to what its value asks for: a mode's name, thinking on or off, or ADAPTIVE."""

BUDGET_FIELDS = (
    "thinking_token_budget", "reasoning_effort", "reasoning.effort", "reasoning.max_tokens", "thinking.budget_tokens",
    "think", "thinking_budget", "thinking_budget_tokens", "reasoning_budget",
)  # fmt: skip
"""Those whose value bounds the thinking, by a number of tokens or by an effort."""

HIDING_FIELDS: Mapping[str, bool] = {"reasoning.exclude": True, "include_reasoning": False}
"""From each field that can leave the thinking out of the response to the value that does."""


def mode_wish(
    body: Fields,
    modes: Mapping[str, Callable[[Any], Wanted]] = MODE_FIELDS,
    budgets: Sequence[str] = BUDGET_FIELDS,
) -> ModeWish:
    """What a body asks for in the fields of the two tables; fields that are absent or null ask for nothing."""
    given = body.model_fields_set
    asked = [field for field in modes if _steps(field)[0] in given and _at(body, field) is not None]
    bounds = [field for field in budgets if _steps(field)[0] in given and _bounds(_at(body, field))]
    return ModeWish(
        requests=[ModeRequest(field, modes[field](_at(body, field))) for field in asked],
        budgets=[Budget(field, _at(body, field)) for field in bounds],
    )


def template_variables(body: ThinkingFields) -> Mapping[str, Any]:
    """What a body has the chat template told beside thinking on or off."""
    told = body.chat_template_kwargs
    return (told.model_extra or {}) if told is not None else {}


def shows_thinking(body: Fields) -> bool:
    """Whether the response has the thinking; raises BadRequestError where the fields contradict each other."""
    said = [
        (field, _at(body, field) == hides) for field, hides in HIDING_FIELDS.items() if _at(body, field) is not None
    ]
    for field, hides in said[1:]:
        if hides != said[0][1]:
            raise BadRequestError(
                f"{said[0][0]} and {field} contradict each other: send only one of them.", param=field
            )
    return not (said and said[0][1])


def _bounds(value: object) -> bool:
    return not isinstance(value, bool) and value not in (None, "none")


def _at(body: Fields, path: str) -> Any:
    """The value of a field; None where any part of the path is absent."""
    value: Any = body
    for step in _steps(path):
        value = getattr(value, step, None)
    return value


@cache
def _steps(path: str) -> list[str]:
    return path.split(".")
