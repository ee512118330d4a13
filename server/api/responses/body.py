"""The body of `POST /v1/responses`: which fields there are, their types and ranges.

`admission.py` says what they mean.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag

from server.api.common.fields import Fields, checked, read_object, refuse_misspelt
from server.api.common.formats import StructuredOutputs, TextFormat
from server.api.common.refused import RETIRED, UNSUPPORTED, refuse_retired, refuse_unsupported
from server.api.common.sampling import MAX_TOP_LOGPROBS, DrawingFields, at_most
from server.api.common.thinking import ReasoningOptions, ThinkingFields
from server.api.responses.items import Input, one_of
from server.api.responses.tools import ToolChoice, Tools
from server.errors import BadRequestError

MAX_METADATA = 16
EXTENSIONS = (
    "reasoning_mode", "thinking_token_budget", "reasoning_effort", "reasoning", "thinking", "chat_template_kwargs",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "structured_outputs",
    "priority", "previous_response_id", "max_output_tokens", "cache_salt",
)  # fmt: skip
"""Fields whose misspellings are refused: ignoring one would silently change what is asked."""
MOVED = {
    "messages": "input", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format", "logprobs": "top_logprobs",
}  # fmt: skip
"""Fields of chat completions, by what they are called here: refused, for the same reason."""
INSTEAD = {
    "max_tokens": "max_output_tokens", "response_format": "text.format", "n": "", "bad_words": "",
    "include_stop_str_in_output": "", "messages": "input", "logprobs": "top_logprobs",
}  # fmt: skip
"""What the same fields are called here, of which the errors of unsupported ones tell."""
Summary = Literal["auto", "concise", "detailed"]
Include = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


def _refused(instead: str) -> Any:
    """A field that is not supported: null, or an error that says what to do instead."""

    def check(value: object) -> None:
        if value is not None:
            raise ValueError(f"is not supported: {instead}")

    return Annotated[None, BeforeValidator(check)]


class ResponseReasoning(ReasoningOptions):
    """How to think, and how the thinking is shown: OpenAI's options and OpenRouter's."""

    summary: Summary | None = None
    """Any of them: the thinking stands in the item's `summary` too, word for word, for clients that read only that."""
    generate_summary: Summary | None = None
    """The same under its older name."""


class JsonObjectText(Fields):
    """Any JSON object."""

    type: Literal["json_object"]
    """The kind of the format."""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """As with `json_schema`, if it is there."""


class JsonSchemaText(Fields):
    """JSON that fits a schema, always as if `strict`."""

    type: Literal["json_schema"]
    """The kind of the format."""
    name: str | None = None
    """Means nothing here."""
    description: str | None = None
    """Means nothing here."""
    schema_: dict[str, Any] = Field(alias="schema")
    """A JSON schema, as far as llguidance knows them: what it does not know is refused."""
    strict: bool | None = None
    """Means nothing here."""


class TextOptions(Fields):
    """The form of the answer."""

    format: Annotated[
        Annotated[TextFormat, Tag("(text)")]
        | Annotated[JsonObjectText, Tag("(json_object)")]
        | Annotated[JsonSchemaText, Tag("(json_schema)")],
        one_of("text", "json_object", "json_schema"),
    ] | None = None  # fmt: skip
    """What binds the answer; the thinking is not bound."""
    verbosity: Literal["low", "medium", "high"] | None = None
    """Means nothing here: models that know no verbosity have no such switch."""


class ResponseStreamOptions(Fields):
    """Options of a streamed response."""

    include_obfuscation: bool | None = None
    """Means nothing here: nothing is sent to hide the lengths of texts."""


class ResponseRequest(ThinkingFields, DrawingFields):
    """A response."""

    model: str
    """A listed model: its own name, or an alias that names the mode too (`NAME:standard`, `NAME:reasoning`)."""
    input: Input | None = None
    """A user's text, or items: messages, the thinking and the calls of past responses, results of calls, references.
    Whatever text they hold is text. May be left out after `previous_response_id`.
    """
    instructions: str | None = None
    """A system message before all else. Not taken over by a response that continues this one."""
    previous_response_id: str | None = None
    """A stored response that this one continues: its conversation comes first."""
    store: bool | None = None
    """False: nothing is kept. Else the response can be asked for, continued and referred to, until it leaves the store,
    which is bounded (`--max-stored-responses`, `--max-stored-bytes`) and lives as long as the server.
    """
    include: list[Include] | None = None
    """`reasoning.encrypted_content`: the thinking also in a form that only the server can read, to be sent back.
    `message.output_text.logprobs`: log-probabilities of the answer. The others are for tools of OpenAI's own, and mean
    nothing here.
    """
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    """The most tokens to generate, thinking included."""
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    """Bounds the calls of tools of OpenAI's own, of which there are none here."""
    reasoning: ResponseReasoning | None = None
    """Whether and how to think: `effort` as `reasoning_effort`."""
    text: TextOptions | None = None
    """The form of the answer."""
    structured_outputs: StructuredOutputs | None = None
    """The same, as in vLLM. Not together with `text.format`.

    Differs: not in OpenAI's API; vLLM's `structural_tag` is refused.
    """
    tools: Tools | None = None
    """Functions and custom tools of the client's.

    Differs: tools of OpenAI's own (`web_search`, `mcp`, …) are skipped; the response lists those that were not.
    """
    tool_choice: ToolChoice | None = None
    """`auto`, the default where there are tools, lets the model choose, thinking included. `none` forbids calls.
    `required` and a named tool bind the answer to calls that fit their schemas; the thinking stays free. With
    `allowed_tools` the model is shown no others.
    """
    parallel_tool_calls: bool | None = None
    """False, or a tool that is named: at most one call."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """With each token of the answer, its log-probability and this many of the likeliest in its place."""
    truncation: Literal["auto", "disabled"] | None = None
    """`auto`: where the conversation is too long for the context, its oldest turns are left out, as few as will do.
    Else that is an error.
    """
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
        Field(max_length=MAX_METADATA),
        at_most(MAX_METADATA),
    ] | None = None  # fmt: skip
    """Comes back with the response."""
    n: Literal[1] | None = None
    """There is one answer."""
    stream: bool | None = None
    """True: the response comes as server-sent events."""
    stream_options: ResponseStreamOptions | None = None
    """Options of a stream."""
    service_tier: str | None = None
    """Means nothing here: the response says `default`."""
    prompt_cache_key: str | None = None
    """Means nothing here, and comes back with the response."""
    safety_identifier: str | None = None
    """Means nothing here, and comes back with the response."""
    user: str | None = None
    """Means nothing here, and comes back with the response."""
    background: bool | None = None
    """True: the response is made whether or not its client waits. It comes at once, `queued`, and `GET` tells how far
    it is; with `stream` its events can be read again from any on. It must be stored, and is lost if the server ends.
    """
    conversation: _refused("use previous_response_id") = None  # type: ignore[valid-type]
    """Refused."""
    prompt: _refused("send the prompt itself, as input and instructions") = None  # type: ignore[valid-type]
    """Refused."""
    context_management: _refused("ask POST /v1/responses/compact for a compaction, or use truncation") = None  # type: ignore[valid-type]
    """Refused."""


def read_response_request(content: bytes) -> ResponseRequest:
    """Parses and checks a body; raises BadRequestError, with `param` where a field is at fault."""
    fields = read_object(content, ResponseRequest.model_fields)
    refuse_misspelt(fields, {*ResponseRequest.model_fields, *RETIRED, *MOVED, *UNSUPPORTED}, EXTENSIONS)
    refuse_retired(fields, {**RETIRED, **MOVED})
    refuse_unsupported(fields, ResponseRequest.model_fields, INSTEAD)
    if fields.get("background") is True and fields.get("store") is False:
        message = "background contradicts store: such a response can only be read once it is stored."
        raise BadRequestError(message, param="background")
    return checked(ResponseRequest, fields)


def read_compact_request(content: bytes) -> ResponseRequest:
    """The same of a compaction, which comes whole."""
    body = read_response_request(content)
    for name in ("stream", "background"):
        if getattr(body, name):
            raise BadRequestError(f"{name}: a compaction comes whole; leave it out.", param=name)
    return body
