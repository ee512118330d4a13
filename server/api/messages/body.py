"""The bodies of `POST /v1/messages` and of `count_tokens`: which fields there are, their types and ranges.

`server.api.messages.conversation` and `server.api.messages.admission` say what they mean.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, FailFast, Field, Tag, field_validator, model_validator

from server.api.common.custom_tools import MAX_TOOLS
from server.api.common.fields import INT64, Fields, checked, read_object, refuse_misspelt
from server.api.common.refused import RETIRED, UNSUPPORTED, refuse_retired, refuse_unsupported
from server.api.common.sampling import MAX_SALT, MAX_STOPS, StopString, TokenCount
from server.api.common.thinking import Bound, ModeName
from server.errors import BadRequestError

# Fields beyond those that every client sends, whose misspellings are refused: ignoring one changes what is asked.
EXTENSIONS = (
    "reasoning_mode", "thinking_token_budget", "thinking", "output_config", "output_format", "stop_sequences",
    "tool_choice", "cache_salt",
)  # fmt: skip

INSTEAD = {
    "response_format": "output_config.format", "reasoning_effort": "output_config.effort", "stop": "stop_sequences",
    "parallel_tool_calls": "tool_choice", "structured_outputs": "", "n": "", "repetition_penalty": "", "bad_words": "",
    "logit_bias": "", "logprobs": "", "include_stop_str_in_output": "", "min_tokens": "", "seed": "",
}  # fmt: skip
"""What fields of the other APIs are called here, or that there is nothing like them, for errors of unsupported ones."""

NO_THREADS = "thread_unsupported_request"
"""Anthropic's code of a request that cannot be part of a conversation that the server keeps."""
OLDER = {**dict.fromkeys(RETIRED, "output_config.format"), "functions": "tools", "function_call": "tool_choice"}
"""What the retired fields of the other APIs are called here."""


class TextBlockParam(Fields):
    """Text."""

    type: Literal["text"]
    """The kind of the block."""
    text: str
    """The text."""


class ThinkingBlockParam(Fields):
    """Thinking of a past turn, as it was answered."""

    type: Literal["thinking"]
    """The kind of the block."""
    thinking: str
    """The thinking, or nothing where it was left out of the answer: the signature holds it."""
    signature: str = ""
    """As it was answered. A block without one of ours is dropped; a text that is not the signature's is refused."""


class RedactedThinkingBlockParam(Fields):
    """Thinking of a past turn that its model did not show."""

    type: Literal["redacted_thinking"]
    """The kind of the block."""
    data: str
    """Dropped: this server makes no such blocks."""


class ToolUseBlockParam(Fields):
    """A past call of a tool."""

    type: Literal["tool_use"]
    """The kind of the block."""
    id: str
    """What the result refers to."""
    name: Annotated[str, Field(min_length=1)]
    """The tool's name."""
    input: dict[str, Any]
    """What it was called with."""


def _as_blocks(value: Any) -> Any:
    """A text is short for one block of it, and nothing for none."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is None or isinstance(value, list):
        return value or []
    raise ValueError("must be a string or a list of content blocks")


TextContent = Annotated[
    list[TextBlockParam],
    FailFast(),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlockParam] | None),
]


class ToolResultBlockParam(Fields):
    """What a tool answered."""

    type: Literal["tool_result"]
    """The kind of the block."""
    tool_use_id: str
    """Of the call."""
    content: TextContent = Field(default_factory=list)
    """The answer: text, or blocks of text.

    Differs: images, documents and search results are refused.
    """
    is_error: bool | None = None
    """True: the tool failed; the model is told so."""


def _block_of(*kinds: str) -> Discriminator:
    """Picks the block by its type, which is one of `kinds`."""

    def tag(value: object) -> str | None:
        kind = value.get("type") if isinstance(value, dict) else None
        return f"({kind})" if kind in kinds else None

    return Discriminator(
        tag,
        custom_error_type="block",
        custom_error_message=f"must be a block whose type is one of {', '.join(kinds)}; this model reads only text",
    )


UserBlock = Annotated[
    Annotated[TextBlockParam, Tag("(text)")] | Annotated[ToolResultBlockParam, Tag("(tool_result)")],
    _block_of("text", "tool_result"),
]
AssistantBlock = Annotated[
    Annotated[TextBlockParam, Tag("(text)")]
    | Annotated[ThinkingBlockParam, Tag("(thinking)")]
    | Annotated[RedactedThinkingBlockParam, Tag("(redacted_thinking)")]
    | Annotated[ToolUseBlockParam, Tag("(tool_use)")],
    _block_of("text", "thinking", "redacted_thinking", "tool_use"),
]


class UserMessage(Fields):
    """A turn of the user's, or results of tools."""

    role: Literal["user"]
    """Whose turn it is."""
    content: Annotated[
        list[UserBlock], FailFast(), BeforeValidator(_as_blocks, json_schema_input_type=str | list[UserBlock])
    ]
    """Text, or blocks.

    Differs: images and documents are refused.
    """


class AssistantMessage(Fields):
    """A past turn of the model's; as the last message, one to be gone on with."""

    role: Literal["assistant"]
    """Whose turn it is."""
    content: Annotated[
        list[AssistantBlock], FailFast(), BeforeValidator(_as_blocks, json_schema_input_type=str | list[AssistantBlock])
    ]
    """Text, or blocks as they were answered."""


class SystemMessage(Fields):
    """Instructions in the middle of a conversation, for models whose template has a place for them."""

    role: Literal["system"]
    """Whose turn it is."""
    content: TextContent
    """Text, or blocks of text."""


def _role_of(value: object) -> str | None:
    role = value.get("role") if isinstance(value, dict) else None
    return f"({role})" if role in ("user", "assistant", "system") else None


Message = Annotated[
    Annotated[UserMessage, Tag("(user)")]
    | Annotated[AssistantMessage, Tag("(assistant)")]
    | Annotated[SystemMessage, Tag("(system)")],
    Discriminator(
        _role_of,
        custom_error_type="message",
        custom_error_message="must be an object whose role is user, assistant or system",
    ),
]


class Tool(Fields):
    """A function that the model may call."""

    type: str | None = None
    """`custom` or nothing.

    Differs: tools that Anthropic runs or describes, such as `web_search_20250305`, are refused.
    """
    name: Annotated[str, Field(min_length=1)]
    """Its name: up to 128 letters, digits, dots, underscores and dashes."""
    description: str | None = None
    """What it does."""
    input_schema: dict[str, Any]
    """A JSON schema of its input."""
    strict: bool | None = None
    """True: the input fits the schema, always. With a forced call it does anyway."""

    @field_validator("type")
    @classmethod
    def _is_a_clients(cls, value: str | None) -> str | None:
        if value not in (None, "custom"):
            raise ValueError(f"this server has no {value[:64]!r}: describe a tool of yours, with name and input_schema")
        return value


class ToolChoice(Fields):
    """How the tools may be used."""

    type: Literal["auto", "any", "tool", "none"]
    """`auto`, the default where there are tools, lets the model choose, thinking included. `any` binds the answer to
    calls that fit their schemas, `tool` to one call of that tool; the thinking stays free. `none` forbids calls.
    """
    name: str | None = None
    """With `tool`: which one."""
    disable_parallel_tool_use: bool | None = None
    """True: at most one call."""

    @model_validator(mode="after")
    def _names_a_tool(self) -> "ToolChoice":
        if self.type == "tool" and self.name is None:
            raise ValueError("a choice of type tool must have a name")
        return self


class ThinkingConfig(Fields):
    """Whether the model thinks."""

    type: Literal["enabled", "adaptive", "disabled"]
    """`enabled` is the profile's mode for thinking, `disabled` the one that answers at once; `adaptive` the one that
    decides, of kind `auto`, and where the profile has none, the mode for thinking. Left out: the mode of `model`, or
    the default.

    Differs: with `adaptive` Anthropic's models choose whether they think.
    """
    budget_tokens: TokenCount | None = None
    """The most tokens of thinking, exactly.

    Differs: Anthropic requires it with `enabled`, 1024 or more and below `max_tokens`.
    """
    display: Literal["summarized", "omitted", "updates"] | None = None
    """`omitted`: the thinking is left out of the response; the signature still holds it. The others show it.

    Differs: all of it is shown, as it comes, not a summary.
    """


class JsonOutputFormat(Fields):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    """The kind of the format."""
    schema_: dict[str, Any] = Field(alias="schema")
    """A JSON schema. It binds the answer; the thinking stays free."""


class OutputConfig(Fields):
    """Of the output."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """The share of the token limit that a mode that thinks may think; a budget in tokens comes before it.

    Differs: to Anthropic's models a hint, for answers without thinking too.
    """
    format: JsonOutputFormat | None = None
    """The form of the answer."""


class CountTokensRequest(Fields):
    """A conversation whose tokens are to be counted: with the same fields, the prompt of a message."""

    model: str | None = None
    """A listed model: its own name, or an alias that names the mode too (`NAME:standard`, `NAME:reasoning`).

    Differs: Anthropic requires it.
    """
    messages: Annotated[list[Message], Field(min_length=1), FailFast()]
    """The conversation. Neighbours of one role are one turn, whose blocks of text an empty line sets apart. A last
    message of the assistant's is gone on with. Whatever text it holds is text: `</think>` in a message is no control
    token.
    """
    system: TextContent = Field(default_factory=list)
    """The instructions: text, or blocks of text."""
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    """The functions that the model may call."""
    tool_choice: ToolChoice | None = None
    """How they may be used."""
    thinking: ThinkingConfig | None = None
    """Whether the model thinks, and how much."""
    output_config: OutputConfig | None = None
    """Effort, and form of the answer."""
    output_format: JsonOutputFormat | None = None
    """As `output_config.format`, under its older name."""
    reasoning_mode: ModeName | None = None
    """A mode of the served profile: template, sampling and token limits of the request, all at once.

    Differs: in no other API.
    """
    thinking_token_budget: Bound | None = None
    """As `thinking.budget_tokens`, in whatever way the mode was chosen; -1: the token limit alone bounds it.

    Differs: not in Anthropic's API.
    """
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT)] | None = None
    """What is in the prefix cache is found by requests of the same salt only, so that `cache_read_input_tokens` tells
    nobody else whether this text was sent. Something that cannot be guessed.

    Differs: not in Anthropic's API.
    """
    mcp_servers: Annotated[list[Any], Field(max_length=0)] | None = None
    """Refused, unless it is empty: this server calls no tools."""
    container: None = None
    """Refused: this server runs no code."""
    context_management: dict[str, Any] | None = None
    """Accepted; the response says that no edit was applied. Past thinking is dropped as the model's template says."""
    cache_control: dict[str, Any] | None = None
    """Accepted, here and in blocks and tools: every prompt is cached, and needs no marks for that."""


class MessagesRequest(CountTokensRequest):
    """A message."""

    max_tokens: Annotated[int, Field(ge=0, le=INT64)]
    """The most tokens to generate, thinking included. What the context does not hold of them is cut off. 0: the prompt
    is read into the cache, and nothing is answered.
    """
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    """The answer ends before the first of these texts. Thinking and tool calls are not searched."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 is greedy.

    Differs: to Anthropic from 0 to 1, and 1 where it is left out; here the mode's.
    """
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draws among the likeliest tokens that hold this share of the probability; 0 is greedy."""
    top_k: Annotated[int, Field(ge=-1, le=INT64)] | None = None
    """Draws among this many of the likeliest tokens; 0 or -1: no limit."""
    stream: bool | None = None
    """True: the response comes as server-sent events."""
    metadata: dict[str, Any] | None = None
    """Accepted and not used: `user_id` is no `cache_salt`."""
    service_tier: str | None = None
    """Accepted: there is one tier, `standard`."""


def read_messages_request(content: bytes) -> MessagesRequest:
    """Parses and checks a body; raises BadRequestError, with `param` where a field is at fault."""
    fields = read_object(content, MessagesRequest.model_fields)
    _refuse_foreign(fields)
    return checked(MessagesRequest, fields)


def read_count_tokens_request(content: bytes) -> CountTokensRequest:
    """The same for `count_tokens`."""
    fields = read_object(content, CountTokensRequest.model_fields)
    _refuse_foreign(fields)
    return checked(CountTokensRequest, fields)


def _refuse_foreign(fields: dict[str, Any]) -> None:
    if fields.get("thread") is not None:  # Anthropic's SDK then sends all of the conversation, as its tool runner needs
        message = "thread is not supported here, and would change the result: leave it out."
        raise BadRequestError(message, param="thread", code=NO_THREADS)
    refuse_misspelt(fields, {*MessagesRequest.model_fields, *UNSUPPORTED, *RETIRED}, EXTENSIONS)
    refuse_retired(fields, OLDER)
    refuse_unsupported(fields, MessagesRequest.model_fields, INSTEAD)
