"""What the responses and events of `/v1/responses` look like, for the OpenAPI document and docs/api/responses.md."""

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from server.api.common.schema import Answer, Count, TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ReasoningFinish = Literal["natural", "budget", "repetition", "confident", "length", "stopped"]


class PlaceLogprob(TokenLogprob):
    """One place in the text."""

    top_logprobs: list[TokenLogprob]
    """The likeliest tokens in this place."""


class OutputText(Answer):
    """The answer's text."""

    type: Literal["output_text"]
    """The kind of the part."""
    text: str
    """The text."""
    annotations: list[Any]
    """Always empty."""
    logprobs: list[PlaceLogprob]
    """Where they are asked for; else empty."""


class ReasoningText(Answer):
    """The thinking's text."""

    type: Literal["reasoning_text"]
    """The kind of the part."""
    text: str
    """The text, without tags."""


class SummaryText(Answer):
    """The thinking's text once more."""

    type: Literal["summary_text"]
    """The kind of the part."""
    text: str
    """The text."""


class OutputMessage(Answer):
    """The answer."""

    id: str
    """`msg_…`."""
    type: Literal["message"]
    """The kind of the item."""
    status: ItemStatus
    """`incomplete` where the token limit or `cancel` cut it."""
    role: Literal["assistant"]
    """Who said it."""
    content: list[OutputText]
    """One text; while the item is new, none."""


class OutputReasoning(Answer):
    """What the model thought, in a mode that thinks."""

    id: str
    """`rs_…`."""
    type: Literal["reasoning"]
    """The kind of the item."""
    status: ItemStatus
    """`incomplete` where the token limit or `cancel` cut it."""
    summary: list[SummaryText]
    """With `reasoning.summary` the thinking, word for word; else empty."""
    content: list[ReasoningText] | None = None
    """The thinking; absent with `reasoning.exclude`."""
    encrypted_content: str | None = None
    """With `include: ["reasoning.encrypted_content"]`, in a whole item: the thinking as only the server reads it."""


class OutputFunctionCall(Answer):
    """A call of a function."""

    id: str
    """`fc_…`."""
    type: Literal["function_call"]
    """The kind of the item."""
    status: ItemStatus
    """`incomplete` where it was cut off."""
    call_id: str
    """What its output has as `call_id`."""
    name: str
    """The function."""
    namespace: str | None = None
    """That of the function, if it has one."""
    arguments: str
    """JSON. The model wrote it: it may be unsound unless a grammar bound it."""


class OutputCustomCall(Answer):
    """A call of a custom tool."""

    id: str
    """`ctc_…`."""
    type: Literal["custom_tool_call"]
    """The kind of the item."""
    status: ItemStatus
    """`incomplete` where it was cut off."""
    call_id: str
    """What its output has as `call_id`."""
    name: str
    """The tool."""
    namespace: str | None = None
    """That of the tool, if it has one."""
    input: str
    """What the model wrote for it."""


class OutputCompaction(Answer):
    """The conversation in short, where `compaction_trigger` asked for it."""

    id: str
    """`cmp_…`."""
    type: Literal["compaction"]
    """The kind of the item."""
    encrypted_content: str
    """The summary as only the server reads it; empty until it is whole."""


OutputItem = Annotated[
    OutputMessage | OutputReasoning | OutputFunctionCall | OutputCustomCall | OutputCompaction,
    Field(discriminator="type"),
]


class InputDetails(Answer):
    """Of the prompt's tokens."""

    cached_tokens: Count
    """How many were found in the prefix cache."""
    cache_write_tokens: Literal[0]
    """Writing to the cache costs nothing here."""


class OutputDetails(Answer):
    """Of the generated tokens."""

    reasoning_tokens: Count
    """How many were thinking, the wrap-up counted; exact."""
    draft_tokens: Count | None = None
    """In a mode of kind `auto`: tokens of dropped drafts, or by which the model chose. They are in no other count."""
    found_again_tokens: Count | None = None
    """In a mode of kind `auto`: how many of the prompt's tokens had not to be computed again after a dropped draft."""
    trial_tokens: Count | None = None
    """In a mode that ends thoughts early: the tokens of answers that were tried. They are in no other count."""


class ResponseUsage(Answer):
    """Token counts."""

    input_tokens: Count
    """Of the prompt."""
    input_tokens_details: InputDetails
    """Of the prompt's tokens."""
    output_tokens: Count
    """Of everything generated: thinking, wrap-up, end tag, answer, end of the turn."""
    output_tokens_details: OutputDetails
    """Of the generated tokens."""
    total_tokens: Count
    """Both together."""


class IncompleteDetails(Answer):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]
    """The token limit, or the context's end."""


class ResponseError(Answer):
    """Why a response failed."""

    code: Literal["server_error", "invalid_prompt"]
    """Whose fault it is."""
    message: str
    """One line, for a person."""


class ReasoningAsked(Answer):
    """What was asked about the thinking."""

    effort: str | None
    """As asked for."""
    summary: str | None
    """As asked for."""


class TextAsked(Answer):
    """What was asked about the answer's form."""

    format: dict[str, Any]
    """As asked for; `{"type": "text"}` where nothing was."""
    verbosity: str | None = None
    """As asked for."""


class ResponseObject(Answer):
    """A response."""

    id: str
    """`resp_…`."""
    object: Literal["response"]
    """The kind of the object."""
    created_at: int
    """Unix time, in seconds."""
    completed_at: int | None
    """The same of its end, if it was completed."""
    status: Literal["queued", "in_progress", "completed", "incomplete", "cancelled", "failed"]
    """`completed`: the model ended its turn, or a stop was reached."""
    error: ResponseError | None
    """Where it failed."""
    incomplete_details: IncompleteDetails | None
    """Where it is incomplete."""
    reasoning_mode: str | None = None
    """In a mode of kind `auto`: the one that it chose; null until it has."""
    reasoning_finish_reason: ReasoningFinish | None = None
    """How the thinking ended: by itself, its budget or the token limit spent, in circles, its answer known, or told
    to. Absent in standard mode.
    """
    model: str
    """The model's own name, whichever alias was asked for."""
    output: list[OutputItem]
    """Thinking, answer and calls, in the order in which the model wrote them."""
    usage: ResponseUsage | None
    """Token counts; null until it has ended."""
    previous_response_id: str | None
    """As asked for."""
    instructions: str | None
    """As asked for."""
    max_output_tokens: int | None
    """As asked for."""
    max_tool_calls: int | None
    """As asked for."""
    temperature: float
    """What the response was drawn with: as asked for, or the mode's."""
    top_p: float
    """The same."""
    presence_penalty: float
    """The same."""
    frequency_penalty: float
    """The same."""
    top_logprobs: Count
    """As asked for."""
    reasoning: ReasoningAsked
    """As asked for."""
    text: TextAsked
    """As asked for."""
    tools: list[dict[str, Any]]
    """As asked for, without those that were skipped."""
    tool_choice: str | dict[str, Any]
    """As asked for."""
    parallel_tool_calls: bool
    """As asked for."""
    truncation: Literal["auto", "disabled"]
    """As asked for."""
    store: bool
    """Whether it is stored."""
    background: bool
    """Whether it was asked for in the background."""
    service_tier: Literal["default"]
    """Always the same."""
    metadata: dict[str, str]
    """As asked for."""
    prompt_cache_key: str | None
    """As asked for."""
    safety_identifier: str | None
    """As asked for."""
    user: str | None = None
    """As asked for."""


class InputTokens(Answer):
    """How long an input is."""

    object: Literal["response.input_tokens"]
    """The kind of the object."""
    input_tokens: Count
    """Tokens of the prompt, template and all."""


class CompactedResponse(Answer):
    """A conversation made short."""

    id: str
    """`resp_…`; it is not stored."""
    object: Literal["response.compaction"]
    """The kind of the object."""
    created_at: int
    """Unix time, in seconds."""
    output: list[dict[str, Any]]
    """The messages of users, systems and developers, word for word, then an item of type `compaction` with the summary
    of all else. To be sent as `input`, as it is, before what is new.
    """
    usage: ResponseUsage
    """Token counts of the summary."""


class DeletedResponse(Answer):
    """A response that was deleted."""

    id: str
    """Its id."""
    object: Literal["response"]
    """The kind of the object."""
    deleted: Literal[True]
    """Always true."""


class ResponseItems(Answer):
    """Items of a response's input."""

    object: Literal["list"]
    """The kind of the object."""
    data: list[dict[str, Any]]
    """The items, with the ids by which `item_reference` finds them."""
    first_id: str | None
    """Of the first item."""
    last_id: str | None
    """Of the last item, for `after`."""
    has_more: bool
    """Whether there are more after it."""


class ResponseControl(Answer):
    """What was done."""

    id: str
    """The response."""
    object: Literal["response.control"]
    """The kind of the object."""
    action: Literal["end_reasoning", "reasoning_end"]
    """As asked for."""
    closed: bool
    """Whether it was thinking; its thinking is closed now."""


class _Event(Answer):
    sequence_number: Count
    """Counts the events of the stream, from 0."""


class ResponseChanged(_Event):
    """How the response stands: first as `created` and `in_progress`, last as it ended."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    """The kind of the event."""
    response: ResponseObject
    """The response, as far as it is."""


class ItemChanged(_Event):
    """An item begins, or is done."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    """The kind of the event."""
    output_index: Count
    """Its number in `output`."""
    item: OutputItem
    """The item as it is."""


class _InItem(_Event):
    item_id: str
    """The item's id."""
    output_index: Count
    """The item's number in `output`."""


class PartChanged(_InItem):
    """The text of a message or of a thinking begins, or is done."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    """The kind of the event."""
    content_index: Literal[0]
    """The part's number in `content`."""
    part: Annotated[OutputText | ReasoningText, Field(discriminator="type")]
    """The part as it is."""


class TextDelta(_InItem):
    """More of the answer."""

    type: Literal["response.output_text.delta"]
    """The kind of the event."""
    content_index: Literal[0]
    """The part's number in `content`."""
    delta: str
    """The text; empty where only log-probabilities are told."""
    logprobs: list[PlaceLogprob]
    """Of these tokens, where they are asked for."""


class TextDone(_InItem):
    """The answer, whole."""

    type: Literal["response.output_text.done"]
    """The kind of the event."""
    content_index: Literal[0]
    """The part's number in `content`."""
    text: str
    """The text."""
    logprobs: list[PlaceLogprob]
    """Of all its tokens, where they are asked for."""


class ReasoningDelta(_InItem):
    """More of the thinking."""

    type: Literal["response.reasoning_text.delta"]
    """The kind of the event."""
    content_index: Literal[0]
    """The part's number in `content`."""
    delta: str
    """The text."""


class ReasoningDone(_InItem):
    """The thinking, whole."""

    type: Literal["response.reasoning_text.done"]
    """The kind of the event."""
    content_index: Literal[0]
    """The part's number in `content`."""
    text: str
    """The text."""


class SummaryPartChanged(_InItem):
    """The summary begins, or is done."""

    type: Literal["response.reasoning_summary_part.added", "response.reasoning_summary_part.done"]
    """The kind of the event."""
    summary_index: Literal[0]
    """The part's number in `summary`."""
    part: SummaryText
    """The part as it is."""


class SummaryDelta(_InItem):
    """More of the summary."""

    type: Literal["response.reasoning_summary_text.delta"]
    """The kind of the event."""
    summary_index: Literal[0]
    """The part's number in `summary`."""
    delta: str
    """The text."""


class SummaryDone(_InItem):
    """The summary, whole."""

    type: Literal["response.reasoning_summary_text.done"]
    """The kind of the event."""
    summary_index: Literal[0]
    """The part's number in `summary`."""
    text: str
    """The text."""


class CallDelta(_InItem):
    """More of a call's arguments, or of a custom tool's input."""

    type: Literal["response.function_call_arguments.delta", "response.custom_tool_call_input.delta"]
    """The kind of the event."""
    delta: str
    """The text."""


class ArgumentsDone(_InItem):
    """A call's arguments, whole."""

    type: Literal["response.function_call_arguments.done"]
    """The kind of the event."""
    name: str
    """The function."""
    arguments: str
    """The arguments."""


class InputDone(_InItem):
    """A custom tool's input, whole."""

    type: Literal["response.custom_tool_call_input.done"]
    """The kind of the event."""
    input: str
    """The input."""


class ErrorTold(_Event):
    """An error; `response.failed` follows."""

    type: Literal["error"]
    """The kind of the event."""
    code: str
    """The error's, or that of the response."""
    message: str
    """One line, for a person."""
    param: str | None
    """The field at fault."""
    error: dict[str, Any]
    """The same as in an error response."""


EVENTS = (
    *(ResponseChanged, ItemChanged, PartChanged, ReasoningDelta, ReasoningDone, SummaryPartChanged, SummaryDelta),
    *(SummaryDone, TextDelta, TextDone, CallDelta, ArgumentsDone, InputDone, ErrorTold),
)


class ResponseEvent(
    RootModel[
        Annotated[
            ResponseChanged | ItemChanged | PartChanged | ReasoningDelta | ReasoningDone | SummaryPartChanged
            | SummaryDelta | SummaryDone | TextDelta | TextDone | CallDelta | ArgumentsDone | InputDone | ErrorTold,
            Field(discriminator="type"),
        ]
    ]
):  # fmt: skip
    """One event of a streamed response."""
