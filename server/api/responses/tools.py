"""The tools of a response and their choice: flat functions, and custom tools, which take text instead of JSON.

To the model a custom tool is a function whose one argument, `input`, is a string.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Discriminator, Field, Tag

from server.api.common.conversation import MAX_TOOLS
from server.api.common.fields import Fields
from server.api.responses.items import one_of, tag_by_type
from server.core.grammar_jobs import TextGrammar
from server.core.request import NamedTool, ToolUse
from server.errors import BadRequestError

Hosted = Literal[
    "web_search", "web_search_preview", "web_search_2025_08_26", "web_search_preview_2025_03_11", "file_search",
    "code_interpreter", "image_generation", "computer", "computer_use_preview", "mcp", "tool_search", "local_shell",
    "shell", "apply_patch", "programmatic_tool_calling",
]  # fmt: skip
"""Tools of OpenAI's own, which a model may use or not: here it never does."""


class FunctionTool(Fields):
    """A function of the client's."""

    type: Literal["function"]
    """The kind of the tool."""
    name: str
    """Up to 64 letters, digits, dots, underscores and dashes."""
    description: str | None = None
    """What it does, for the model."""
    parameters: dict[str, Any] | None = None
    """A JSON schema of the arguments."""
    strict: bool | None = None
    """As of a chat completion's tools."""


class TextInput(Fields):
    """Any text."""

    type: Literal["text"]
    """The kind of the input."""


class GrammarInput(Fields):
    """Text in a form."""

    type: Literal["grammar"]
    """The kind of the input."""
    syntax: Literal["regex", "lark"]
    """The notation of the definition."""
    definition: Annotated[str, Field(min_length=1)]
    """A regular expression that all of the input matches, or a Lark grammar of it. It binds the input as the schema of
    a strict function binds its arguments.

    Differs: of Lark's directives there are `%ignore` and `%import common.NAME`.
    """


class CustomTool(Fields):
    """A tool of the client's that takes text."""

    type: Literal["custom"]
    """The kind of the tool."""
    name: str
    """As a function's."""
    description: str | None = None
    """What it does, for the model."""
    format: Annotated[
        Annotated[TextInput, Tag("(text)")] | Annotated[GrammarInput, Tag("(grammar)")], one_of("text", "grammar")
    ] | None = None  # fmt: skip
    """The form of its input; absent: any text."""


Own = Annotated[
    Annotated[FunctionTool, Tag("(function)")] | Annotated[CustomTool, Tag("(custom)")], one_of("function", "custom")
]


class Namespace(Fields):
    """Several tools under one name, as Codex sends them; the model sees each as `NAMESPACE.NAME`."""

    type: Literal["namespace"]
    """The kind of the tool."""
    name: str
    """Comes back as a call's `namespace`."""
    description: str
    """Means nothing here: each tool has its own."""
    tools: Annotated[list[Own], Field(max_length=MAX_TOOLS)]
    """Functions and custom tools."""


class HostedTool(Fields):
    """A tool of OpenAI's own: skipped, and refused where `tool_choice` wants it."""

    type: Hosted
    """The kind of the tool."""


TOOL_TYPES = ("function", "custom", "namespace")
SYNTAXES = {"lark": "Lark grammar", "regex": "regular expression"}
"""What the model is told of a custom tool's input."""


def _tool_tag(value: object) -> str | None:
    return "(hosted)" if tag_by_type(*get_args(Hosted))(value) else tag_by_type(*TOOL_TYPES)(value)


Tool = Annotated[
    Annotated[FunctionTool, Tag("(function)")]
    | Annotated[CustomTool, Tag("(custom)")]
    | Annotated[Namespace, Tag("(namespace)")]
    | Annotated[HostedTool, Tag("(hosted)")],
    Discriminator(
        _tool_tag,
        custom_error_type="tool",
        custom_error_message=f"must be an object whose type is one of {', '.join(TOOL_TYPES)}",
    ),
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class NamedChoice(Fields):
    """One tool."""

    type: Literal["function", "custom"]
    """The kind of the tool."""
    name: str
    """Its name."""


class AllowedTools(Fields):
    """Some of the tools: the model is shown these alone."""

    type: Literal["allowed_tools"]
    """The kind of the choice."""
    mode: Literal["auto", "required"]
    """As `tool_choice`, for these tools."""
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=MAX_TOOLS)]
    """The tools that may be called."""


def _choice_tag(value: object) -> str | None:
    if isinstance(value, str):
        return "(text)"
    return "(named)" if tag_by_type("function", "custom")(value) else tag_by_type("allowed_tools")(value)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("(text)")]
    | Annotated[NamedChoice, Tag("(named)")]
    | Annotated[AllowedTools, Tag("(allowed_tools)")],
    Discriminator(
        _choice_tag,
        custom_error_type="tool_choice",
        custom_error_message='must be "none", "auto", "required", a function or custom tool, or allowed_tools',
    ),
]


class Offered(NamedTuple):
    """A tool of the client's, the field that it came in, and its namespace."""

    tool: FunctionTool | CustomTool
    path: str
    namespace: str | None = None

    @property
    def shown_name(self) -> str:
        """What the model calls it."""
        return shown_name(self.tool.name, self.namespace)


def shown_name(name: str, namespace: str | None) -> str:
    """What the model calls a tool."""
    return name if namespace is None else f"{namespace}.{name}"


class ToolSet:
    """The tools that the model is shown, as the core takes them, and how they may be used.

    `offered`: the same by the names that the model has for them. `names`: what the core's fields are called here.
    Raises BadRequestError where `tool_choice` names a tool that is not there.
    """

    def __init__(self, tools: Sequence[Any], choice: Any, *, parallel: bool) -> None:
        own = list(_offered(tools))
        if isinstance(choice, AllowedTools):
            allowed = _found(choice, own)
            own = [one for one in own if (one.tool.type, one.shown_name) in allowed]
        elif isinstance(choice, NamedChoice):
            _check_named(choice, own, "tool_choice.name")
        self.tools = [_as_function(one) for one in own]
        self.offered = {one.shown_name: one for one in own}
        texts = {one.shown_name: made for one in own if (made := _grammar_of(one.tool)) is not None}
        self.use = ToolUse(choice=_core_choice(choice), parallel=parallel, texts=texts)
        self.names: dict[str, str] = {}
        for at, one in enumerate(own):
            self.names |= {f"tools[{at}].function": one.path, f"tools[{at}]": one.path}
            if isinstance(one.tool, CustomTool):
                self.names[f"tools[{at}].function.parameters"] = f"{one.path}.format.definition"


def _offered(tools: Sequence[Any]) -> Iterator[Offered]:
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if isinstance(tool, Namespace):
            yield from (Offered(one, f"{path}.tools[{at}]", tool.name) for at, one in enumerate(tool.tools))
        elif not isinstance(tool, HostedTool):
            yield Offered(tool, path)


def _core_choice(choice: Any) -> Any:
    if isinstance(choice, AllowedTools):
        return choice.mode
    return NamedTool(choice.name) if isinstance(choice, NamedChoice) else choice or "auto"


def _found(choice: AllowedTools, offered: Sequence[Offered]) -> set[tuple[str, str]]:
    for index, named in enumerate(choice.tools):
        _check_named(named, offered, f"tool_choice.tools[{index}].name")
    return {(named.type, named.name) for named in choice.tools}


def _check_named(named: NamedChoice, offered: Sequence[Offered], param: str) -> None:
    if not any((one.tool.type, one.shown_name) == (named.type, named.name) for one in offered):
        raise BadRequestError(f"{param}: there is no {named.type} tool {named.name[:64]!r} in tools.", param=param)


def _as_function(offered: Offered) -> dict[str, Any]:
    tool = offered.tool
    function = {
        "name": offered.shown_name,
        "description": tool.description,
        "parameters": _schema(tool),
        "strict": _is_strict(tool) or None,
    }
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _schema(tool: FunctionTool | CustomTool) -> dict[str, Any] | None:
    if isinstance(tool, FunctionTool):
        return tool.parameters
    text = {"type": "string"}
    if isinstance(tool.format, GrammarInput):
        text["description"] = f"Fits this {SYNTAXES[tool.format.syntax]}:\n{tool.format.definition}"
    return {"type": "object", "properties": {"input": text}, "required": ["input"]}


def _grammar_of(tool: FunctionTool | CustomTool) -> TextGrammar | None:
    if isinstance(tool, FunctionTool) or not isinstance(tool.format, GrammarInput):
        return None
    return TextGrammar(tool.format.syntax, tool.format.definition)


def _is_strict(tool: FunctionTool | CustomTool) -> bool:
    return bool(tool.strict) if isinstance(tool, FunctionTool) else isinstance(tool.format, GrammarInput)


def as_arguments(text: str) -> str:
    """The arguments of a custom tool's call, as the model writes them."""
    return json.dumps({"input": text}, ensure_ascii=False)


_HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_HIGH = r"\\u[dD][89abAB][0-9a-fA-F]{2}"  # the first half of a character that takes two escapes
_CERTAIN = re.compile(
    rf'(?:[^"\\]|\\["\\/bfnrt]|(?!{_HIGH})\\u[0-9a-fA-F]{{4}}|{_HIGH}\\u[0-9a-fA-F]{{4}}|{_HIGH}(?=[^\\]|\\[^u]))*'
)


class InputReader:
    """Reads a custom tool's input out of the arguments of its call, `{"input": "…"}`, as they come."""

    def __init__(self) -> None:
        self._unread = ""
        self._is_inside = False

    def feed(self, arguments: str) -> str:
        """More of the input, as far as it is certain."""
        self._unread += arguments
        if not self._is_inside:
            head = _HEAD.match(self._unread)
            if head is None:
                return ""
            self._is_inside = True
            self._unread = self._unread[head.end() :]
        certain = _CERTAIN.match(self._unread)
        assert certain is not None
        self._unread = self._unread[certain.end() :]
        return _unescaped(certain[0])

    def finish(self) -> str:
        """The whole of it where the model wrote it otherwise: what it wrote, if that is no such argument at all."""
        if self._is_inside:
            return ""
        try:
            arguments = json.loads(self._unread)
        except (ValueError, RecursionError):
            return self._unread
        text = arguments.get("input") if isinstance(arguments, Mapping) else None
        return text if isinstance(text, str) else self._unread


def _unescaped(text: str) -> str:
    unescaped: str = json.loads(f'"{text}"', strict=False)
    return unescaped.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
