"""What form a request wants its answer in: free text, JSON, some grammar, tool calls; and the grammar for that.

The grammar binds the answer only. Knows what the forms mean; `server.core.grammars` writes and checks the grammars.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from chat_templates.format import NO_TOKEN
from server.core import grammars
from server.core.plan import AnswerFormat
from server.core.request import ChoiceForm, Conversation, Form, GrammarForm, JsonForm, NamedTool, RegexForm, Request
from server.core.serving import Serving
from server.errors import BadRequestError
from server.offload import GRAMMARS, offload

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
ANY_OBJECT: dict[str, Any] = {"type": "object"}
NamedSchema = tuple[str, grammars.Schema]
"""A tool's name and the schema of its arguments."""


@dataclass(frozen=True)
class _Rule:
    """One way to answer: the grammar `text`, as a rule's right-hand side or whole, that the field `param` asked for."""

    text: str
    param: str
    is_whole: bool = False


async def answer_format(request: Request, serving: Serving) -> AnswerFormat:
    """Raises BadRequestError for what contradicts itself and for what no grammar takes."""
    choice = request.tool_use.choice
    tools = named_tools(request)
    forced = _forced_tools(request, tools)
    rule = await offload(GRAMMARS, lambda: _rule(request.forms)) if request.forms and not forced else None
    # A tool that is named is called once, as OpenAI and vLLM do.
    parallel = request.tool_use.parallel and not isinstance(choice, NamedTool)
    may_call = bool(forced) or (bool(tools) and choice == "auto" and not (rule and rule.is_whole))
    called = forced or (tools if may_call and rule else [])
    if rule or called:
        _refuse_with_grammar(request)
    return AnswerFormat(
        grammar=await _grammar(rule, called, request, serving, parallel=parallel),
        calls=may_call,
        calls_in_thinking=may_call and not forced,
        parallel=parallel,
        forbids_calls=bool(tools) and not may_call,
    )


async def _grammar(
    rule: _Rule | None, tools: list[NamedSchema], request: Request, serving: Serving, *, parallel: bool
) -> str | None:
    """The grammar of an answer that is one of both; None for a free one."""
    if rule is None and not tools:
        return None
    fmt = serving.fmt
    most = None if parallel else 1
    if rule is not None:
        await _check(_whole(rule, None), rule.param)
    if tools:
        calls = grammars.of_calls(tools, grammars.ANY_OPEN, grammars.ANY_CLOSE, most=most)
        await _check(_whole(None, calls), request.name("tools"))
        tags, ids = fmt.settings, (fmt.tool_call_id, fmt.tool_call_end_id)
        opening, closing = (tags.tool_call, tags.tool_call_end) if NO_TOKEN in ids else ids
        calls = grammars.of_calls(tools, opening, closing, most=most, inside=tags.inside_tool_call)
        return _whole(rule, calls)
    return _whole(rule, None)


async def _check(grammar: str, param: str) -> None:
    await offload(GRAMMARS, lambda: grammars.check(grammar, param))


def _whole(rule: _Rule | None, calls: str | None) -> str:
    if rule is not None and rule.is_whole:
        return rule.text
    ways = [way for way, is_there in (("answer", rule is not None), ("calls", calls is not None)) if is_there]
    rules = [f"start: {' | '.join(ways)}"]
    if rule is not None:
        rules.append(f"answer: {rule.text}")
    return "\n".join([*rules, calls] if calls is not None else rules)


def _forced_tools(request: Request, tools: list[NamedSchema]) -> list[NamedSchema]:
    """The tools one of which must be called; none where the model may answer otherwise."""
    choice = request.tool_use.choice
    if choice in ("none", "auto"):
        return []
    if not tools:
        field = request.name("tools")
        raise request.refusal("tool_choice", f"{{field}} needs {field}: there are none to choose from.")
    if choice == "required":
        return tools
    assert isinstance(choice, NamedTool)
    named = [tool for tool in tools if tool[0] == choice.name]
    if not named:
        field = request.name("tool_choice")
        raise request.refusal("tool_choice.name", f"{field}: there is no tool {choice.name[:64]!r}.")
    return named[:1]


def named_tools(request: Request) -> list[NamedSchema]:
    """The tools of a request whose prompt is rendered, and hence checked as far as that goes; BadRequestError."""
    if not isinstance(request.prompt, Conversation):
        return []
    return [_name_and_schema(request, tool, f"tools[{index}]") for index, tool in enumerate(request.prompt.tools)]


def _name_and_schema(request: Request, tool: Mapping[str, Any], path: str) -> NamedSchema:
    """Of a tool that has a function with a name: the prompt is rendered already, and checked with that."""
    function = tool["function"]
    if not NAME.fullmatch(function["name"]):
        raise request.refusal(
            f"{path}.function.name", "a function's name has up to 64 letters, digits, dots, underscores and dashes."
        )
    schema = function.get("parameters")
    if schema is not None and not isinstance(schema, dict):
        raise request.refusal(f"{path}.function.parameters", "{field} must be a JSON schema.")
    return function["name"], {**ANY_OBJECT, **(schema or {})}


def _rule(forms: Sequence[Form]) -> _Rule:
    """The grammar of a text that has the one form asked for; raises BadRequestError."""
    if len(forms) > 1:
        one, other = (form.field.partition(".")[0] for form in forms[:2])
        raise BadRequestError(f"{one} and {other} both bind the answer: send only one of them.", param=other)
    form = forms[0]
    match form:
        case JsonForm(field, schema):
            return _made(field, lambda: grammars.of_schema(_schema(schema)))
        case RegexForm(field, pattern):
            return _Rule(grammars.of_regex(pattern), field)
        case ChoiceForm(field, texts):
            return _Rule(grammars.of_choices(texts), field)
        case GrammarForm(field, grammar):
            return _made(field, lambda: grammars.of_lark(grammar), is_whole=True)


def _schema(schema: Any) -> grammars.Schema:
    """The schema that the client sent, as JSON or as the text of it; raises ValueError."""
    try:
        schema = orjson.loads(schema) if isinstance(schema, str) else schema
    except orjson.JSONDecodeError as error:
        raise ValueError(f"this is not valid JSON: {error.msg} (character {error.pos})") from None
    if not isinstance(schema, dict | bool):
        raise ValueError("a JSON schema is an object")  # noqa: TRY004 - told to the client as a bad value
    return schema


def _made(field: str, make: Callable[[], str], *, is_whole: bool = False) -> _Rule:
    try:
        return _Rule(make(), field, is_whole)
    except ValueError as error:
        raise BadRequestError(f"{field}: {' '.join(str(error).split())}", param=field) from error


def _refuse_with_grammar(request: Request) -> None:
    """Both would have tokens after the grammar's end, where there can be none."""
    for name, value in (("min_tokens", request.stop.min_tokens), ("ignore_eos", request.stop.ignore_eos)):
        if value:
            raise request.refusal(name, "{field} contradicts a grammar or a forced tool call: leave it out.")
