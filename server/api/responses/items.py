"""The items of a response's input: messages, thinking that comes back, calls and their results, references.

Also the items of past responses, as the store has them. What the model reads of them: `conversation.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, GetJsonSchemaHandler, Tag, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from server.api.common.fields import Fields, tag_of
from server.core.request import new_id
from server.errors import JsonObject


def tag_by_type(*types: str) -> Callable[[object], str | None]:
    """Tells objects apart by their `type`; the tags are the types in brackets, which paths in errors leave out."""

    def tag(value: object) -> str | None:
        kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
        return f"({kind})" if kind in types else None

    return tag


def one_of(*types: str) -> Discriminator:
    """Refuses objects of any other type, naming those there are."""
    message = f"must be an object whose type is one of {', '.join(types)}"
    return Discriminator(tag_by_type(*types), custom_error_type="type", custom_error_message=message)


class Overlapping:
    """Marks a union of which a value may fit several kinds, for the OpenAPI document."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With `anyOf`."""
        made = handler(schema)
        return {**{key: value for key, value in made.items() if key != "oneOf"}, "anyOf": made["oneOf"]}


class TextPart(Fields):
    """Text."""

    type: Literal["input_text", "output_text", "text"]
    """Who wrote it makes no difference."""
    text: str
    """The text."""


class RefusalPart(Fields):
    """What the model said instead of an answer."""

    type: Literal["refusal"]
    """The kind of the part."""
    refusal: str
    """The text."""


PART_TYPES = ("input_text", "output_text", "text", "refusal")


def _part_tag(value: object) -> str | None:
    tag = tag_by_type(*PART_TYPES)(value)
    return tag and ("(refusal)" if tag == "(refusal)" else "(text)")


Part = Annotated[
    Annotated[TextPart, Tag("(text)")] | Annotated[RefusalPart, Tag("(refusal)")],
    Discriminator(
        _part_tag,
        custom_error_type="part",
        custom_error_message=f"must be a part whose type is one of {', '.join(PART_TYPES)}: this model reads text "
        "only, no images, audio or files",
    ),
]
Content = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[list[Part], Tag("(list)")],
    Discriminator(tag_of, custom_error_type="content", custom_error_message="must be a string or a list of text parts"),
]


def text_of(content: "str | list[Part]") -> str:
    """The text of a content, parts joined."""
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


class Message(Fields):
    """A message."""

    type: Literal["message"] = "message"
    """May be left out."""
    id: str | None = None
    """Of a message that came from a response."""
    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is OpenAI's newer name for `system`."""
    content: Content
    """Text, or parts of it, which are joined.

    Differs: images, audio and files are refused.
    """
    phase: str | None = None
    """Means nothing here."""


class ReasoningText(Fields):
    """A text of the thinking."""

    text: str
    """The text."""


class Reasoning(Fields):
    """The thinking of a past response. Whether the model reads it again is the chat template's choice; most drop it."""

    type: Literal["reasoning"]
    """The kind of the item."""
    id: str | None = None
    """As in the response."""
    summary: list[ReasoningText] | None = None
    """As in the response; read where there is nothing else."""
    content: list[ReasoningText] | None = None
    """The thinking."""
    encrypted_content: str | None = None
    """The same as only the server can read it. It counts where both are there; one that was changed, or sealed with
    another key, is refused.
    """


class FunctionCall(Fields):
    """A call of a function by the model."""

    type: Literal["function_call"]
    """The kind of the item."""
    id: str | None = None
    """As in the response."""
    call_id: str
    """What its output refers to."""
    name: str
    """The function."""
    namespace: str | None = None
    """As in the response."""
    arguments: str
    """JSON, as the model wrote it."""


class CustomToolCall(Fields):
    """A call of a custom tool by the model."""

    type: Literal["custom_tool_call"]
    """The kind of the item."""
    id: str | None = None
    """As in the response."""
    call_id: str
    """What its output refers to."""
    name: str
    """The tool."""
    namespace: str | None = None
    """As in the response."""
    input: str
    """What the model wrote for it."""


class CallOutput(Fields):
    """What a function, or a custom tool, returned."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    """Which of both."""
    id: str | None = None
    """Means nothing here."""
    call_id: str
    """The call's."""
    output: Content
    """Text, or parts of it, which are joined."""


class ItemReference(Fields):
    """An item that this server has stored, of a response's input or output."""

    type: Literal["item_reference"] = "item_reference"
    """May be left out."""
    id: str
    """The item's."""


TYPES = (
    *("message", "reasoning", "function_call", "function_call_output"),
    *("custom_tool_call", "custom_tool_call_output", "item_reference"),
)


def _item_tag(value: object) -> str | None:
    if isinstance(value, Mapping) and value.get("type") is None:
        return "(message)" if "role" in value else "(item_reference)" if "id" in value else None
    tag = tag_by_type(*TYPES)(value)
    return "(call_output)" if tag in ("(function_call_output)", "(custom_tool_call_output)") else tag


Item = Annotated[
    Annotated[Message, Tag("(message)")]
    | Annotated[Reasoning, Tag("(reasoning)")]
    | Annotated[FunctionCall, Tag("(function_call)")]
    | Annotated[CustomToolCall, Tag("(custom_tool_call)")]
    | Annotated[CallOutput, Tag("(call_output)")]
    | Annotated[ItemReference, Tag("(item_reference)")],
    Overlapping(),
    Discriminator(
        _item_tag,
        custom_error_type="item",
        custom_error_message=f"must be an item whose type is one of {', '.join(TYPES)}",
    ),
]
Input = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[list[Item], Field(min_length=1), Tag("(list)")],
    Discriminator(tag_of, custom_error_type="input", custom_error_message="must be a string or a list of items"),
]
_STORED: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


def items_of(stored: Sequence[JsonObject]) -> list[Item]:
    """Items as the store has them, as the input has them."""
    return _STORED.validate_python(list(stored))


def stored_form(item: Item) -> JsonObject:
    """An item of an input as the store has it and shows it: with an id, its content in parts."""
    match item:
        case Message():
            parts = _parts(item.content, "output_text" if item.role == "assistant" else "input_text")
            return {**_head(item, "msg"), "role": item.role, "status": "completed", "content": parts}
        case Reasoning():
            made = {**_head(item, "rs"), "summary": _texts(item.summary, "summary_text")}
            if item.content is not None:
                made["content"] = _texts(item.content, "reasoning_text")
            return made if item.encrypted_content is None else {**made, "encrypted_content": item.encrypted_content}
        case FunctionCall():
            return {**_head(item, "fc"), "status": "completed", **_called(item), "arguments": item.arguments}
        case CustomToolCall():
            return {**_head(item, "ctc"), "status": "completed", **_called(item), "input": item.input}
        case CallOutput():
            output = item.output if isinstance(item.output, str) else _parts(item.output, "input_text")
            prefix = "fco" if item.type == "function_call_output" else "ctco"
            return {**_head(item, prefix), "status": "completed", "call_id": item.call_id, "output": output}
    raise AssertionError("references are resolved before")


def _head(item: Item, prefix: str) -> JsonObject:
    return {"id": item.id or new_id(prefix, "_"), "type": item.type}


def _called(item: FunctionCall | CustomToolCall) -> JsonObject:
    called: JsonObject = {"call_id": item.call_id, "name": item.name}
    return called if item.namespace is None else {**called, "namespace": item.namespace}


def _parts(content: str | list[Part], kind: Literal["input_text", "output_text"]) -> list[JsonObject]:
    parts = [TextPart(type=kind, text=content)] if isinstance(content, str) else content
    return [_part(part, kind) for part in parts]


def _part(part: Part, kind: str) -> JsonObject:
    if isinstance(part, RefusalPart):
        return {"type": "refusal", "refusal": part.refusal}
    made: JsonObject = {"type": kind, "text": part.text}
    return {**made, "annotations": [], "logprobs": []} if kind == "output_text" else made


def _texts(parts: list[ReasoningText] | None, kind: str) -> list[JsonObject]:
    return [{"type": kind, "text": part.text} for part in parts or ()]
