"""What the responses of `/v1/chat/completions` look like, for the OpenAPI document and docs/api/chat.md."""

from typing import Annotated, Literal

from pydantic import Field

from server.api.common.schema import Answer, Count, PlaceLogprob, TokenLogprob, Usage

FinishReason = Literal["stop", "length", "tool_calls"]
ReasoningFinish = Literal["natural", "budget", "repetition", "confident", "length", "stopped"]


class TopLogprobs(TokenLogprob):
    """One place in the text."""

    top_logprobs: list[TokenLogprob]
    """The likeliest tokens in this place."""


class ChoiceLogprobs(Answer):
    """Log-probabilities of one choice; a streamed part has those of its tokens."""

    content: list[TopLogprobs] | None = None
    """Of the answer's tokens."""
    reasoning: list[TopLogprobs] | None = None
    """Of the thinking's tokens, with `reasoning_logprobs`."""
    refusal: None
    """Always null."""


class CalledFunction(Answer):
    """A call of a tool."""

    name: str
    """The tool's name."""
    arguments: str
    """Its arguments, as JSON in a string. The model wrote them: they may be unsound unless a grammar bound them."""


class CalledCustom(Answer):
    """A call of a custom tool."""

    name: str
    """The tool's name."""
    input: str
    """What the model wrote for it."""


class CustomCall(Answer):
    """A call of a custom tool."""

    id: str
    """What its result has as `tool_call_id`."""
    type: Literal["custom"]
    """The kind of the call."""
    custom: CalledCustom
    """Name and input."""


class ToolCall(Answer):
    """A call of a tool."""

    id: str
    """What its result has as `tool_call_id`."""
    type: Literal["function"]
    """The kind of the call."""
    function: CalledFunction
    """Name and arguments."""


class Message(Answer):
    """What the model said."""

    role: Literal["assistant"]
    """Who said it."""
    content: str | None
    """The answer; null only beside tool calls. Never any thinking, template, end tag or wrap-up."""
    refusal: None
    """Always null."""
    reasoning_content: str | None = None
    """The thinking; absent in standard mode."""
    reasoning: str | None = None
    """The same under its newer name."""
    tool_calls: list[Annotated[ToolCall | CustomCall, Field(discriminator="type")]] | None = None
    """The calls, of the thinking too; absent where there are none."""


class ChatChoice(Answer):
    """One answer."""

    index: Count
    """Its number, from 0."""
    message: Message
    """What the model said."""
    logprobs: ChoiceLogprobs | None
    """With `logprobs`."""
    finish_reason: FinishReason
    """`stop`: the model ended its turn, a stop was reached, or the tool was called that `tool_choice` names; `length`:
    the token limit; `tool_calls`.
    """
    stop_reason: str | int | None
    """The stop string, or the token of `stop_token_ids`, that ended the answer."""
    reasoning_mode: str | None = None
    """In a mode of kind `auto`: the one that it chose."""
    reasoning_finish_reason: ReasoningFinish | None = None
    """How the thinking ended: by itself, its budget or the token limit spent, in circles, its answer known, or told
    to. Absent in standard mode.
    """
    token_ids: list[int] | None = None
    """All generated tokens, with `return_token_ids`."""


class ChatCompletion(Answer):
    """A chat completion."""

    id: str
    """Its id, which `control` takes while it runs."""
    object: Literal["chat.completion"]
    """The kind of the object."""
    created: int
    """Unix time, in seconds."""
    model: str
    """The model's own name, whichever alias was asked for."""
    system_fingerprint: str
    """In how many bits the weights are held: `twogear-bf16`, `twogear-int8` or `twogear-int4`."""
    choices: list[ChatChoice]
    """The `n` answers."""
    usage: Usage
    """Token counts."""
    prompt_token_ids: list[int] | None = None
    """The prompt's tokens, with `return_token_ids`."""
    prompt_logprobs: list[dict[str, PlaceLogprob] | None] | None = None
    """With `prompt_logprobs`: for each token of the prompt but the first, by token id."""


class FunctionDelta(Answer):
    """More of a call."""

    name: str | None = None
    """The tool's name, whole, in the call's first part."""
    arguments: str
    """More of the arguments."""


class CustomDelta(Answer):
    """More of a call of a custom tool."""

    name: str | None = None
    """The tool's name, whole, in the call's first part."""
    input: str
    """More of the input."""


class ToolCallDelta(Answer):
    """More of a call."""

    index: Count
    """The call's number, from 0."""
    id: str | None = None
    """In the call's first part."""
    type: Literal["function", "custom"] | None = None
    """In the call's first part."""
    function: FunctionDelta | None = None
    """More of name and arguments."""
    custom: CustomDelta | None = None
    """The same of a custom tool."""


class Delta(Answer):
    """More of a message."""

    role: Literal["assistant"] | None = None
    """In the first part."""
    content: str | None = None
    """More of the answer."""
    reasoning_content: str | None = None
    """More of the thinking."""
    reasoning: str | None = None
    """The same under its newer name."""
    tool_calls: list[ToolCallDelta] | None = None
    """More of the calls."""


class ChunkChoice(Answer):
    """More of one answer."""

    index: Count
    """Its number, from 0."""
    delta: Delta
    """More of the message."""
    logprobs: ChoiceLogprobs | None
    """Of the tokens of this part, with `logprobs`."""
    finish_reason: FinishReason | None
    """Null but in the last part."""
    stop_reason: str | int | None = None
    """In the last part: the stop string, or the token of `stop_token_ids`, that ended the answer."""
    reasoning_mode: str | None = None
    """In a mode of kind `auto`: the one that it chose."""
    reasoning_finish_reason: ReasoningFinish | None = None
    """In the last part of a choice that thought."""
    token_ids: list[int] | None = None
    """The tokens of this part, with `return_token_ids`."""


class ChatCompletionChunk(Answer):
    """One event of a streamed chat completion."""

    id: str
    """The same in all events."""
    object: Literal["chat.completion.chunk"]
    """The kind of the object."""
    created: int
    """Unix time, in seconds."""
    model: str
    """The model's own name."""
    system_fingerprint: str
    """As in a response that is not streamed."""
    choices: list[ChunkChoice]
    """More of one choice; empty in the event that has the usage."""
    usage: Usage | None = None
    """With `stream_options.include_usage`: null in all events but the last."""
    prompt_token_ids: list[int] | None = None
    """In the first event, with `return_token_ids`."""


class ControlResult(Answer):
    """What was done."""

    id: str
    """The completion."""
    object: Literal["chat.completion.control"]
    """The kind of the object."""
    action: Literal["end_reasoning", "reasoning_end"]
    """As asked for."""
    choices: list[Count]
    """The choices that were thinking, whose thinking is now closed."""
