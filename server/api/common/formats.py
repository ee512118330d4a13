"""The fields that say what form an answer takes: `response_format`, `structured_outputs`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from server.api.common.fields import Fields
from server.core.request import ChoiceForm, Form, GrammarForm, JsonForm, RegexForm
from server.errors import BadRequestError

ANY_OBJECT = {"type": "object"}
MAX_CHOICE = 4096
CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")


class TextFormat(Fields):
    """No constraint."""

    type: Literal["text"]


class JsonObjectFormat(Fields):
    """Any JSON object, or with a schema one that fits it."""

    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """A JSON schema, as llama.cpp, Together and Fireworks take it here.

    Differs: not in OpenAI's API.
    """
    value: dict[str, Any] | None = None
    """The same, as in text-generation-inference.

    Differs: not in OpenAI's API.
    """


class JsonSchema(Fields):
    """A schema, by which the answer is always bound, `strict` or not."""

    name: str | None = None
    """Means nothing here."""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """Required: a JSON schema, as far as llguidance knows them. What it does not know is refused."""


class JsonSchemaFormat(Fields):
    """JSON that fits a schema, always as if `strict`."""

    type: Literal["json_schema"]
    json_schema: JsonSchema | None = None
    """Required, unless `schema` is there."""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """The JSON schema itself, as llama.cpp takes it here.

    Differs: not in OpenAI's API.
    """


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


class FormFields(Fields):
    """All ways to say what form an answer takes. More than one contradict each other."""

    response_format: ResponseFormat | None = None
    """The form of the answer; the thinking is not bound.

    Differs: OpenAI obeys a schema only with `strict`, here it is always obeyed.
    """
    structured_outputs: StructuredOutputs | None = None
    """The same, as in vLLM. Not together with `response_format`.

    Differs: not in OpenAI's API; vLLM's `structural_tag` is refused.
    """
    json_schema: str | dict[str, Any] | None = None
    """As `structured_outputs.json`: SGLang's and llama.cpp's name for it.

    Differs: not in OpenAI's API.
    """
    regex: str | None = None
    """As `structured_outputs.regex`: SGLang's name for it.

    Differs: not in OpenAI's API.
    """
    ebnf: str | None = None
    """As `structured_outputs.grammar`: SGLang's name for it.

    Differs: not in OpenAI's API.
    """
    grammar: str | None = None
    """As `structured_outputs.grammar`: llama.cpp's name for it; an empty one asks for nothing.

    Differs: not in OpenAI's API.
    """


def forms_in(body: FormFields) -> tuple[Form, ...]:
    """All that binds the answer, in any of the fields; raises BadRequestError."""
    forms: list[Form] = list(forms_of(body.response_format, body.structured_outputs))
    if body.json_schema is not None:
        forms.append(JsonForm("json_schema", body.json_schema))
    if body.regex:
        forms.append(RegexForm("regex", body.regex))
    forms += [GrammarForm(name, text) for name in ("ebnf", "grammar") if (text := getattr(body, name))]
    return tuple(forms)


def forms_of(response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None) -> tuple[Form, ...]:
    """What binds the answer; more than one contradict each other. Raises BadRequestError."""
    forms = (_of_response_format(response_format), _of_structured_outputs(structured_outputs))
    return tuple(form for form in forms if form is not None)


def _of_response_format(asked: ResponseFormat | None) -> Form | None:
    match asked:
        case JsonObjectFormat(schema_=None, value=None):
            return JsonForm("response_format", ANY_OBJECT)
        case JsonObjectFormat():
            return _of_schemas({"response_format.schema": asked.schema_, "response_format.value": asked.value})
        case JsonSchemaFormat():
            inner = asked.json_schema
            return _of_schemas(
                {
                    "response_format.json_schema.schema": None if inner is None else inner.schema_,
                    "response_format.schema": asked.schema_,
                },
                required="response_format.json_schema" if inner is None else "response_format.json_schema.schema",
            )
    return None


def _of_schemas(schemas: Mapping[str, dict[str, Any] | None], required: str = "") -> Form:
    """The one schema that is there, of those in these fields; raises BadRequestError."""
    given = [(field, schema) for field, schema in schemas.items() if schema is not None]
    if not given:
        raise BadRequestError(f"{required} is required: the schema that the answer is to fit.", param=required)
    (field, schema), *others = given
    for other, another in others:
        if another != schema:
            raise BadRequestError(f"{field} and {other} are two schemas: send only one of them.", param=other)
    return JsonForm(field, schema)


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
