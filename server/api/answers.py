"""What the responses look like, for the OpenAPI document and docs/api.md; tests hold the real ones against it.

The responses themselves are built as plain dicts, in the `objects` module of each API.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
FinishReason = Literal["stop", "length", "tool_calls"]
ReasoningFinish = Literal["natural", "budget", "length", "stopped"]


class Answer(BaseModel):
    """Base of all responses and their parts: there are no other fields than those named."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ErrorDetails(Answer):
    """What went wrong."""

    message: str
    """One line, for a person."""
    type: Literal["invalid_request_error", "service_unavailable_error", "server_error"]
    """The kind of the error."""
    param: str | None
    """The field at fault, as in `messages[0].content`."""
    code: str | None
    """`context_length_exceeded`, `model_not_found`, `request_not_found`, `request_too_large`, or null."""


class ErrorResponse(Answer):
    """An error, as the whole response or as the last event of a stream."""

    error: ErrorDetails
    """What went wrong."""


class PromptDetails(Answer):
    """Of the prompt's tokens."""

    cached_tokens: Count
    """How many were found in the prefix cache."""


class CompletionDetails(Answer):
    """Of the generated tokens."""

    reasoning_tokens: Count
    """How many were thinking, the wrap-up counted; exact."""


class Usage(Answer):
    """Token counts."""

    prompt_tokens: Count
    """Of the prompt, once for all choices."""
    completion_tokens: Count
    """Of everything generated, over all choices: thinking, wrap-up, end tag, answer, end of the turn."""
    total_tokens: Count
    """Both together."""
    prompt_tokens_details: PromptDetails
    """Of the prompt's tokens."""
    completion_tokens_details: CompletionDetails
    """Of the generated tokens."""


class TokenLogprob(Answer):
    """A token with its probability."""

    token: str
    """Its text."""
    logprob: float | None
    """The natural logarithm of its probability by the model alone; null for a prompt's first token."""
    bytes: list[Annotated[int, Field(ge=0, le=255)]]
    """Its UTF-8 bytes, of which a character may take several tokens."""


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
    tool_calls: list[ToolCall] | None = None
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
    """`stop`: the model ended its turn, or a stop was reached; `length`: the token limit; `tool_calls`."""
    reasoning_finish_reason: ReasoningFinish | None = None
    """How the thinking ended: by itself, its budget or the token limit spent, or told to. Absent in standard mode."""
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
    choices: list[ChatChoice]
    """The `n` answers."""
    usage: Usage
    """Token counts."""
    prompt_token_ids: list[int] | None = None
    """The prompt's tokens, with `return_token_ids`."""


class FunctionDelta(Answer):
    """More of a call."""

    name: str | None = None
    """The tool's name, whole, in the call's first part."""
    arguments: str
    """More of the arguments."""


class ToolCallDelta(Answer):
    """More of a call."""

    index: Count
    """The call's number, from 0."""
    id: str | None = None
    """In the call's first part."""
    type: Literal["function"] | None = None
    """In the call's first part."""
    function: FunctionDelta
    """More of name and arguments."""


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
    choices: list[ChunkChoice]
    """More of one choice; empty in the event that has the usage."""
    usage: Usage | None = None
    """With `stream_options.include_usage`: null in all events but the last."""
    prompt_token_ids: list[int] | None = None
    """In the first event, with `return_token_ids`."""


class TextLogprobs(Answer):
    """Log-probabilities of a text, a list for each field."""

    tokens: list[str]
    """The texts of the tokens."""
    token_logprobs: list[float | None]
    """Their log-probabilities; null for a prompt's first token."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest tokens in each place."""
    text_offset: list[Count]
    """Where each token begins in the text, in characters."""


class TextChoice(Answer):
    """One text; in a stream, more of it."""

    index: Count
    """Its number: all choices of the first prompt, then those of the next."""
    text: str
    """The text, after the prompt's own with `echo`."""
    logprobs: TextLogprobs | None
    """With `logprobs`."""
    finish_reason: Literal["stop", "length"] | None
    """Null only in a stream, before the last part."""
    token_ids: list[int] | None = None
    """All generated tokens, with `return_token_ids`."""
    prompt_token_ids: list[int] | None = None
    """The prompt's tokens, with `return_token_ids`; in a stream, in the first part."""


class TextCompletion(Answer):
    """A text completion; in a stream, one event of it."""

    id: str
    """Its id."""
    object: Literal["text_completion"]
    """The kind of the object, in a stream too."""
    created: int
    """Unix time, in seconds."""
    model: str
    """The model's own name."""
    choices: list[TextChoice]
    """`n` texts for each prompt."""
    usage: Usage | None = None
    """Token counts; in a stream as for chat completions."""


class ControlResult(Answer):
    """What was done."""

    id: str
    """The completion."""
    object: Literal["chat.completion.control"]
    """The kind of the object."""
    action: Literal["end_reasoning"]
    """As asked for."""
    choices: list[Count]
    """The choices that were thinking, whose thinking is now closed."""


class Tokenized(Answer):
    """Tokens of a text."""

    count: Count
    """How many."""
    max_model_len: Count
    """The model's context, in tokens."""
    tokens: list[int]
    """The token ids."""
    token_strs: list[str] | None
    """How the tokenizer spells them, with `return_token_strs`."""


class Detokenized(Answer):
    """The text of tokens."""

    prompt: str
    """The text."""


class Model(Answer):
    """A listed model."""

    id: str
    """The name to ask for."""
    object: Literal["model"]
    """The kind of the object."""
    created: int
    """When the server was started, in Unix time."""
    owned_by: Literal["twogear"]
    """Who serves it."""
    max_model_len: Count | None
    """The model's context in tokens; null until it is loaded."""
    reasoning_mode: str
    """The mode of requests for this name that name no other."""
    kind: Literal["direct", "thinking"]
    """Whether that mode answers at once or thinks first."""


class Models(Answer):
    """All of them."""

    object: Literal["list"]
    """The kind of the object."""
    data: list[Model]
    """The model under its own name, then under one alias for each mode."""


class Healthy(Answer):
    """The server takes requests."""

    status: Literal["ok"]
    """That it does."""


class Unhealthy(ErrorResponse):
    """The server does not take requests now."""

    status: Literal["loading", "ready", "lost", "closed", "draining"]
    """Why."""
    progress: Annotated[float, Field(ge=0, le=1)]
    """How far loading has come."""
    detail: str
    """The same in words."""


class Versions(Answer):
    """What runs here."""

    version: str
    """Of Twogear."""
    engine: str | None
    """Of vLLM; null until the engine is up."""
