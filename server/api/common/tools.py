"""The tools of a chat completion and their choice, as OpenAI has them: functions, and custom tools, which take text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag, WithJsonSchema

from server.api.common.custom_tools import MAX_TOOLS, custom_parameters
from server.api.common.fields import Fields
from server.core.grammar_jobs import TextGrammar
from server.core.request import NamedTool, ToolUse
from server.errors import BadRequestError

TOOL_SCHEMA = {
    "title": "Tool",
    "type": "object",
    "required": ["function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"},
                "description": {"type": "string"},
                "parameters": {"type": ["object", "null"], "description": "A JSON schema of the arguments."},
                "strict": {
                    "description": "True, under `auto`: from where the model opens a call, a grammar binds it to the "
                    "tools' names and to the schemas of the strict ones; text around it stays free. Calls that must be "
                    "made fit their schemas anyway.",
                },
            },
        },
    },
}


def _type_of(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    return kind if isinstance(kind, str) else None


class TextInput(Fields):
    """Any text."""

    type: Literal["text"]


class Grammar(Fields):
    """What the input has to fit, as a strict function's arguments fit their schema."""

    syntax: Literal["regex", "lark"]
    """The notation of the definition."""
    definition: Annotated[str, Field(min_length=1)]
    """A regular expression that all of the input matches, or a Lark grammar of it.

    Differs: of Lark's directives there are `%ignore` and `%import common.NAME`.
    """


class GrammarInput(Fields):
    """Text in a form."""

    type: Literal["grammar"]
    grammar: Grammar


class Custom(Fields):
    """A tool of the client's that takes text."""

    name: str
    """As a function's."""
    description: str | None = None
    """What it does, for the model."""
    format: Annotated[
        Annotated[TextInput, Tag("(text)")] | Annotated[GrammarInput, Tag("(grammar)")],
        Discriminator(
            lambda value: f"({_type_of(value)})" if _type_of(value) in ("text", "grammar") else None,
            custom_error_type="format",
            custom_error_message="must be an object whose type is one of text, grammar",
        ),
    ] | None = None  # fmt: skip
    """The form of its input; absent: any text."""

    @property
    def grammar(self) -> TextGrammar | None:
        """What the input has to fit."""
        if not isinstance(self.format, GrammarInput):
            return None
        return TextGrammar(self.format.grammar.syntax, self.format.grammar.definition)

    def as_function(self) -> dict[str, Any]:
        """As the core takes it."""
        grammar = self.grammar
        function: dict[str, Any] = {"name": self.name, "parameters": custom_parameters(grammar)}
        if self.description is not None:
            function["description"] = self.description
        if grammar is not None:
            function["strict"] = True
        return {"type": "function", "function": function}


class CustomTool(Fields):
    """A tool of the client's that takes text."""

    type: Literal["custom"]
    custom: Custom


# Functions are only documented here: `chat_templates.messages` checks them, for training too.
Tool = Annotated[
    Annotated[dict[str, Any], WithJsonSchema(TOOL_SCHEMA), Tag("(function)")] | Annotated[CustomTool, Tag("(custom)")],
    Discriminator(lambda value: "(custom)" if _type_of(value) == "custom" else "(function)"),
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class Named(Fields):
    """One of the tools."""

    name: str


class NamedFunction(Fields):
    """A function."""

    type: Literal["function"]
    function: Named


class NamedCustom(Fields):
    """A custom tool."""

    type: Literal["custom"]
    custom: Named


def _named_tag(value: object) -> str | None:
    return f"({_type_of(value)})" if _type_of(value) in ("function", "custom") else None


NamedTools = Annotated[
    Annotated[NamedFunction, Tag("(function)")] | Annotated[NamedCustom, Tag("(custom)")],
    Discriminator(
        _named_tag,
        custom_error_type="named_tool",
        custom_error_message="must be an object whose type is one of function, custom",
    ),
]


class Allowed(Fields):
    """Some of the tools: the model is shown these alone."""

    mode: Literal["auto", "required"]
    """As `tool_choice`, for these tools."""
    tools: Annotated[list[NamedTools], Field(min_length=1, max_length=MAX_TOOLS)]
    """The tools that may be called."""


class AllowedTools(Fields):
    """Some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: Allowed


def _choice_tag(value: object) -> str | None:
    if isinstance(value, str):
        return "(text)"
    return "(allowed_tools)" if _type_of(value) == "allowed_tools" else _named_tag(value)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("(text)")]
    | Annotated[NamedFunction, Tag("(function)")]
    | Annotated[NamedCustom, Tag("(custom)")]
    | Annotated[AllowedTools, Tag("(allowed_tools)")],
    Discriminator(
        _choice_tag,
        custom_error_type="tool_choice",
        custom_error_message='must be "none", "auto", "required", a function or custom tool, or allowed_tools',
    ),
]


class _Offered(NamedTuple):
    """A tool of the client's and the field that it came in; its name may still be wrong."""

    tool: Any
    path: str
    kind: str
    name: object


class ToolSet:
    """The tools that the model is shown, as the core takes them, and how they may be used.

    `names`: what the core's fields are called here. Raises BadRequestError where `tool_choice` names a tool that is not
    there.
    """

    def __init__(self, tools: Sequence[Any], choice: Any, *, parallel: bool) -> None:
        own = list(_offered(tools))
        if isinstance(choice, AllowedTools):
            allowed = _found(choice.allowed_tools, own)
            own = [one for one in own if (one.kind, one.name) in allowed]
        customs = {one.path: one.tool.custom for one in own if isinstance(one.tool, CustomTool)}
        self.tools = [customs[one.path].as_function() if one.path in customs else one.tool for one in own]
        texts = {custom.name: custom.grammar for custom in customs.values() if custom.grammar is not None}
        self.use = ToolUse(choice=_core_choice(choice, own), parallel=parallel, texts=texts)
        self.names = {"tool_choice.name": "tool_choice.function.name"}
        for at, one in enumerate(own):
            self.names[f"tools[{at}]"] = one.path
            if one.path in customs:
                self.names[f"tools[{at}].function"] = f"{one.path}.custom"
                self.names[f"tools[{at}].function.parameters"] = f"{one.path}.custom.format.grammar.definition"


def _offered(tools: Sequence[Any]) -> Iterator[_Offered]:
    for index, tool in enumerate(tools):
        if isinstance(tool, CustomTool):
            yield _Offered(tool, f"tools[{index}]", "custom", tool.custom.name)
        else:
            function = tool.get("function")
            name = function.get("name") if isinstance(function, Mapping) else None
            yield _Offered(tool, f"tools[{index}]", "function", name)


def _core_choice(choice: Any, offered: Sequence[_Offered]) -> Any:
    match choice:
        case AllowedTools():
            return choice.allowed_tools.mode
        case NamedFunction():
            return NamedTool(choice.function.name)
        case NamedCustom():
            _check_named(choice, offered, "tool_choice")
            return NamedTool(choice.custom.name)
    return choice or "auto"


def _found(allowed: Allowed, offered: Sequence[_Offered]) -> set[tuple[str, object]]:
    for index, named in enumerate(allowed.tools):
        _check_named(named, offered, f"tool_choice.allowed_tools.tools[{index}]")
    return {(named.type, _name(named)) for named in allowed.tools}


def _name(named: NamedFunction | NamedCustom) -> str:
    return named.function.name if isinstance(named, NamedFunction) else named.custom.name


def _check_named(named: NamedFunction | NamedCustom, offered: Sequence[_Offered], path: str) -> None:
    name = _name(named)
    if not any((one.kind, one.name) == (named.type, name) for one in offered):
        param = f"{path}.{named.type}.name"
        raise BadRequestError(f"{param}: there is no {named.type} tool {name[:64]!r} in tools.", param=param)
