"""What Anthropic's messages and events look like, for the OpenAPI document and docs/api."""

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from server.api.common.schema import Answer, Count


class TextBlock(Answer):
    """The answer, or a part of it between calls."""

    type: Literal["text"]
    """The kind of the block."""
    text: str
    """The text."""
    citations: Annotated[list[Any], Field(max_length=0)]
    """Never any: an empty list, which clients take that know no null here."""


class ThinkingBlock(Answer):
    """The thinking."""

    type: Literal["thinking"]
    """The kind of the block."""
    thinking: str
    """The thinking; with `display: omitted` nothing."""
    signature: str
    """Holds the thinking, sealed, for the block to come back with."""


class Caller(Answer):
    """Who calls."""

    type: Literal["direct"]
    """The model."""


class ToolUseBlock(Answer):
    """A call of a tool."""

    type: Literal["tool_use"]
    """The kind of the block."""
    id: str
    """What the result has to refer to."""
    name: str
    """The tool's name."""
    input: dict[str, Any]
    """What it is called with. Of a call that a limit cut off, what is complete of that; what is no JSON object stands
    under `INVALID_JSON`, as text.
    """
    caller: Caller
    """Who calls."""


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]


class OutputDetails(Answer):
    """Of the generated tokens."""

    thinking_tokens: Count
    """How many were thinking, the wrap-up counted; exact."""
    draft_tokens: Count | None = None
    """In a mode of kind `auto`: tokens of dropped drafts, or by which the model chose. They are in no other count."""
    found_again_tokens: Count | None = None
    """In a mode of kind `auto`: how many of the prompt's tokens had not to be computed again after a dropped draft."""
    trial_tokens: Count | None = None
    """In a mode that ends thoughts early: the tokens of answers that were tried. They are in no other count."""


class UsageSoFar(Answer):
    """Token counts so far."""

    input_tokens: Count
    """Of the prompt, without those that were found in the cache: with `cache_read_input_tokens` it is what
    `count_tokens` tells.
    """
    cache_creation_input_tokens: Literal[0]
    """Always 0: what is written into the cache is among `input_tokens`."""
    cache_read_input_tokens: Count
    """How many of the prompt were found in the cache."""
    output_tokens: Count
    """Of everything generated: thinking, wrap-up, end tag, answer, end of the turn."""
    output_tokens_details: OutputDetails
    """Of the generated tokens."""
    server_tool_use: None
    """Never any."""


class CacheCreation(Answer):
    """By how long the cache lasts."""

    ephemeral_5m_input_tokens: Literal[0]
    """Always 0."""
    ephemeral_1h_input_tokens: Literal[0]
    """Always 0."""


class MessageUsage(UsageSoFar):
    """Token counts."""

    cache_creation: CacheCreation
    """By how long the cache lasts."""
    service_tier: Literal["standard"]
    """The only one."""
    inference_geo: None
    """Not told."""


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class AppliedEdits(Answer):
    """Of a context that is to be managed."""

    applied_edits: Annotated[list[Any], Field(max_length=0)]
    """None are."""


class MessageEnd(Answer):
    """How a message ended."""

    stop_reason: StopReason | None
    """Why; null at a stream's beginning. `model_context_window_exceeded`: the context is full before `max_tokens`."""
    stop_sequence: str | None
    """The one of `stop_sequences` that the answer reached."""
    stop_details: None
    """Never any."""
    container: None
    """Never any."""
    reasoning_finish_reason: Literal["natural", "budget", "repetition", "confident", "length", "stopped"] | None = None
    """How the thinking ended, where there was any: by itself, with its budget, in circles, with the token limit,
    because its answer was known, or because its turn ended or a client ended it.
    """


class AnthropicMessage(MessageEnd):
    """An answer."""

    reasoning_mode: str | None = None
    """In a mode of kind `auto`: the one that it chose."""
    id: str
    """The id of the answer."""
    type: Literal["message"]
    """The kind of the object."""
    role: Literal["assistant"]
    """Whose turn it is."""
    model: str
    """The model's own name."""
    content: list[Block]
    """Its blocks, in the order in which the model wrote them."""
    usage: MessageUsage
    """Token counts."""
    context_management: AppliedEdits | None = None
    """Where `context_management` was sent."""


class MessageStart(Answer):
    """A stream begins."""

    type: Literal["message_start"]
    """The kind of the event, which is its name too."""
    message: AnthropicMessage
    """The message, still empty."""


class BlockStart(Answer):
    """A block begins."""

    type: Literal["content_block_start"]
    """The kind of the event."""
    index: Count
    """Which block of the message it is."""
    content_block: Block
    """The block, still empty."""


class TextDelta(Answer):
    """More text."""

    type: Literal["text_delta"]
    """The kind of the delta."""
    text: str
    """The text."""


class ThinkingDelta(Answer):
    """More thinking."""

    type: Literal["thinking_delta"]
    """The kind of the delta."""
    thinking: str
    """The text."""


class SignatureDelta(Answer):
    """The signature of a thinking, at its end."""

    type: Literal["signature_delta"]
    """The kind of the delta."""
    signature: str
    """The signature."""


class InputJsonDelta(Answer):
    """More of a call's input."""

    type: Literal["input_json_delta"]
    """The kind of the delta."""
    partial_json: str
    """The text of a JSON object, in parts."""


class BlockDelta(Answer):
    """More of a block."""

    type: Literal["content_block_delta"]
    """The kind of the event."""
    index: Count
    """Which block of the message it is."""
    delta: Annotated[TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta, Field(discriminator="type")]
    """What is added to it."""


class BlockStop(Answer):
    """A block ends."""

    type: Literal["content_block_stop"]
    """The kind of the event."""
    index: Count
    """Which block of the message it is."""


class MessageDelta(Answer):
    """What is known at the message's end."""

    type: Literal["message_delta"]
    """The kind of the event."""
    delta: MessageEnd
    """How the message ended."""
    usage: UsageSoFar
    """Token counts."""
    context_management: AppliedEdits | None = None
    """Where `context_management` was sent."""


class MessageStop(Answer):
    """A stream ends."""

    type: Literal["message_stop"]
    """The kind of the event."""


class Ping(Answer):
    """A sign of life."""

    type: Literal["ping"]
    """The kind of the event."""


class ThreadDetails(Answer):
    """That the server keeps no conversations."""

    error_code: Literal["thread_unsupported_request"]
    """Always the same."""
    unsupported: list[str]
    """What of the request it cannot keep."""


class AnthropicErrorDetails(Answer):
    """What went wrong."""

    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "billing_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
        "timeout_error",
    ]
    """The kind of the error."""
    message: str
    """One line, for a person; it names the field at fault."""
    details: ThreadDetails | None = None
    """Where `thread` was sent: by this Anthropic's SDK knows that it has to send the whole conversation."""


class AnthropicError(Answer):
    """An error, as the whole response or as the last event of a stream."""

    type: Literal["error"]
    """The kind of the object."""
    error: AnthropicErrorDetails
    """What went wrong."""
    request_id: str | None
    """The id of the request, where there is one."""


class MessageEvent(
    RootModel[
        Annotated[
            MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping | AnthropicError,
            Field(discriminator="type"),
        ]
    ]
):
    """One event of a stream."""


class MessageControl(Answer):
    """What was done."""

    id: str
    """The message."""
    type: Literal["message_control"]
    """The kind of the object."""
    action: Literal["end_reasoning"]
    """As asked for."""
    closed: bool
    """Whether it was thinking; its thinking is closed now."""


class TokensCount(Answer):
    """The size of a prompt."""

    input_tokens: Count
    """How many tokens it has."""
