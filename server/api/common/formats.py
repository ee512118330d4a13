"""The fields that say what form an answer takes: `response_format`, `structured_outputs`, `tool_choice`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from server.api.common.fields import Fields, tag_of
from server.core.request import ChoiceForm, Form, GrammarForm, JsonForm, RegexForm

ANY_OBJECT = {"type": "object"}
MAX_CHOICE = 4096
CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")


class TextFormat(Fields):
    """No constraint."""

    type: Literal["text"]


class JsonObjectFormat(Fields):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Fields):
    """A schema, by which the answer is always bound, `strict` or not."""

    name: str | None = None
    """Means nothing here."""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """A JSON schema, as far as llguidance knows them: what it does not know is refused. Left out: any JSON."""


class JsonSchemaFormat(Fields):
    """JSON that fits a schema, always as if `strict`."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


def _type_of(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"({kind})" if kind in FORMATS else None


FORMATS = ("text", "json_object", "json_schema")
ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("(text)")]
    | Annotated[JsonObjectFormat, Tag("(json_object)")]
    | Annotated[JsonSchemaFormat, Tag("(json_schema)")],
    Discriminator(
        _type_of, custom_error_type="format", custom_error_message=f"must be an object whose type is one of {FORMATS}"
    ),
]


class StructuredOutputs(Fields):
    """vLLM's way: exactly one of these constraints."""

    json_: str | dict[str, Any] | None = Field(default=None, alias="json")
    """A JSON schema, or the text of one."""
    regex: str | None = None
    """A regular expression that all of the answer matches, in the syntax of Rust's regex crate."""
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICE)] | None = None
    """Exactly one of these texts."""
    grammar: Annotated[str, Field(min_length=1)] | None = None
    """A grammar in the notation of Lark or of llama.cpp (GBNF)."""
    json_object: Literal[True] | None = None
    """Any JSON object."""
    structural_tag: None = None
    """Refused: use `tools`."""

    @field_validator("structural_tag", mode="before")
    @classmethod
    def _no_tags(cls, value: object) -> None:
        if value is not None:
            raise ValueError("is not supported: use tools")

    @model_validator(mode="after")
    def _one_constraint(self) -> "StructuredOutputs":
        if sum(value is not None for _, value in self._all()) != 1:
            raise ValueError(f"exactly one of {', '.join(CONSTRAINTS)} must be set")
        return self

    def constraint(self) -> tuple[str, object]:
        """The one that is set: its name and value."""
        return next((name, value) for name, value in self._all() if value is not None)

    def _all(self) -> list[tuple[str, object]]:
        return [(name, self.json_ if name == "json" else getattr(self, name)) for name in CONSTRAINTS]


class NamedFunction(Fields):
    """One of the tools."""

    name: str


class NamedToolChoice(Fields):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("(text)")] | Annotated[NamedToolChoice, Tag("(object)")],
    Discriminator(
        tag_of, custom_error_type="tool_choice", custom_error_message='must be "none", "auto", "required" or a tool'
    ),
]


def forms_of(response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None) -> tuple[Form, ...]:
    """What binds the answer; more than one contradict each other."""
    forms = (_of_response_format(response_format), _of_structured_outputs(structured_outputs))
    return tuple(form for form in forms if form is not None)


def _of_response_format(asked: ResponseFormat | None) -> Form | None:
    match asked:
        case JsonObjectFormat():
            return JsonForm("response_format", ANY_OBJECT)
        case JsonSchemaFormat():
            return JsonForm("response_format.json_schema.schema", asked.json_schema.schema_ or {})
    return None


def _of_structured_outputs(asked: StructuredOutputs | None) -> Form | None:
    if asked is None:
        return None
    name, value = asked.constraint()
    field = f"structured_outputs.{name}"
    match name:
        case "json":
            return JsonForm(field, value)
        case "json_object":
            return JsonForm(field, ANY_OBJECT)
        case "regex":
            return RegexForm(field, str(value))
        case "choice":
            return ChoiceForm(field, asked.choice or [])
    return GrammarForm(field, str(value))
