"""The fields that say what form an answer takes: `response_format`, `structured_outputs`, `tool_choice`."""

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from server.bodies.fields import Fields, tag_of

MAX_CHOICE = 4096
CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")


class TextFormat(Fields):
    """No constraint."""

    type: Literal["text"]


class JsonObjectFormat(Fields):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Fields):
    """A schema; its name means nothing here."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


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
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICE)] | None = None
    grammar: Annotated[str, Field(min_length=1)] | None = None
    json_object: Literal[True] | None = None
    structural_tag: object = None

    @model_validator(mode="after")
    def _one_constraint(self) -> "StructuredOutputs":
        if self.structural_tag is not None:
            raise ValueError("structural_tag is not supported: use tools")
        if sum(value is not None for _, value in self._all()) != 1:
            raise ValueError(f"exactly one of {', '.join(CONSTRAINTS)} must be set")
        return self

    def constraint(self) -> tuple[str, object]:
        """The one that is set: its name and value."""
        return next((name, value) for name, value in self._all() if value is not None)

    def schema_of_json(self) -> dict[str, Any] | bool:
        """The schema that `json` is, or is the text of; raises ValueError."""
        schema = json.loads(self.json_) if isinstance(self.json_, str) else self.json_
        if not isinstance(schema, dict | bool):
            raise ValueError("a JSON schema is an object")  # noqa: TRY004 - told to the client as a bad value
        return schema

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
