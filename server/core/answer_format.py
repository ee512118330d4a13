"""What form a request wants its answer in: free text, JSON, some grammar, tool calls; and the grammar for that.

The grammar binds the answer only. Knows the fields' meaning; `server.core.grammars` writes and checks the grammars.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chat_templates.format import NO_TOKEN
from server.api.chat.body import ChatRequest
from server.api.common.formats import (
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedToolChoice,
    ResponseFormat,
    StructuredOutputs,
    ToolChoice,
)
from server.api.common.sampling import SamplingFields
from server.core import grammars
from server.core.job import AnswerFormat
from server.errors import BadRequestError
from server.offload import GRAMMARS, offload
from server.serving import Serving

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


async def answer_format(asked: ChatRequest, serving: Serving) -> AnswerFormat:
    """Raises BadRequestError for what contradicts itself and for what no grammar takes."""
    choice = asked.tool_choice or "auto"
    tools = named_tools(asked)
    forced = _forced_tools(asked.tool_choice, tools)
    bound = asked.response_format is not None or asked.structured_outputs is not None
    rule = await offload(GRAMMARS, lambda: _rule(asked)) if bound and not forced else None
    # A tool that is named is called once, as OpenAI and vLLM do.
    parallel = asked.parallel_tool_calls is not False and not isinstance(choice, NamedToolChoice)
    may_call = bool(forced) or (bool(tools) and choice == "auto" and not (rule and rule.is_whole))
    called = forced or (tools if may_call and rule else [])
    if rule or called:
        _refuse_with_grammar(asked)
    return AnswerFormat(
        grammar=await _grammar(rule, called, serving, parallel=parallel),
        calls=may_call,
        calls_in_thinking=may_call and not forced,
        parallel=parallel,
        forbids_calls=bool(tools) and not may_call,
    )


async def text_grammar(asked: SamplingFields) -> str | None:
    """The grammar of a text that is not free, and no tools anywhere; raises BadRequestError as `answer_format`."""
    rule = await offload(GRAMMARS, lambda: _rule(asked))
    if rule is None:
        return None
    _refuse_with_grammar(asked)
    grammar = _whole(rule, None)
    await _check(grammar, rule.param)
    return grammar


async def _grammar(rule: _Rule | None, tools: list[NamedSchema], serving: Serving, *, parallel: bool) -> str | None:
    """The grammar of an answer that is one of both; None for a free one."""
    if rule is None and not tools:
        return None
    fmt = serving.fmt
    most = None if parallel else 1
    if rule is not None:
        await _check(_whole(rule, None), rule.param)
    if tools:
        calls = grammars.of_calls(tools, grammars.ANY_OPEN, grammars.ANY_CLOSE, most=most)
        await _check(_whole(None, calls), "tools")
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


def _forced_tools(choice: ToolChoice | None, tools: list[NamedSchema]) -> list[NamedSchema]:
    """The tools one of which must be called; none where the model may answer otherwise."""
    if choice in (None, "none", "auto"):
        return []
    if not tools:
        raise BadRequestError("tool_choice needs tools: there are none to choose from.", param="tool_choice")
    if choice == "required":
        return tools
    assert isinstance(choice, NamedToolChoice)
    named = [tool for tool in tools if tool[0] == choice.function.name]
    if not named:
        raise BadRequestError(
            f"tool_choice: there is no tool {choice.function.name[:64]!r}.", param="tool_choice.function.name"
        )
    return named[:1]


def named_tools(asked: ChatRequest) -> list[NamedSchema]:
    """The tools of a request whose prompt is rendered, and hence checked as far as that goes; BadRequestError."""
    return [_name_and_schema(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools or [])]


def _name_and_schema(tool: Mapping[str, Any], param: str) -> tuple[str, grammars.Schema]:
    """Of a tool that has a function with a name: the prompt is rendered already, and checked with that."""
    function = tool["function"]
    if not NAME.fullmatch(function["name"]):
        raise BadRequestError(
            "a function's name has up to 64 letters, digits, dots, underscores and dashes.",
            param=f"{param}.function.name",
        )
    schema = function.get("parameters")
    if schema is not None and not isinstance(schema, dict):
        raise BadRequestError(
            f"{param}.function.parameters must be a JSON schema.", param=f"{param}.function.parameters"
        )
    return function["name"], {**ANY_OBJECT, **(schema or {})}


def _rule(asked: SamplingFields) -> _Rule | None:
    """The grammar of the text, if it is not free."""
    of_format = _of_response_format(asked.response_format)
    of_outputs = _of_structured_outputs(asked.structured_outputs)
    if of_format and of_outputs:
        raise BadRequestError(
            "response_format and structured_outputs both bind the answer: send only one of them.",
            param="structured_outputs",
        )
    return of_format or of_outputs


def _of_response_format(asked: ResponseFormat | None) -> _Rule | None:
    match asked:
        case JsonObjectFormat():
            return _Rule(grammars.of_schema(ANY_OBJECT), "response_format")
        case JsonSchemaFormat():
            param = "response_format.json_schema.schema"
            return _made(param, lambda: grammars.of_schema(asked.json_schema.schema_ or {}))
    return None


def _of_structured_outputs(asked: StructuredOutputs | None) -> _Rule | None:
    if asked is None:
        return None
    name, value = asked.constraint()
    param = f"structured_outputs.{name}"
    match name:
        case "json":
            return _made(param, lambda: grammars.of_schema(asked.schema_of_json()))
        case "json_object":
            return _Rule(grammars.of_schema(ANY_OBJECT), param)
        case "regex":
            return _Rule(grammars.of_regex(str(value)), param)
        case "choice":
            return _Rule(grammars.of_choices(asked.choice or []), param)
    return replace(_made(param, lambda: grammars.of_lark(str(value))), is_whole=True)


def _made(param: str, make: Callable[[], str]) -> _Rule:
    try:
        return _Rule(make(), param)
    except ValueError as error:
        raise BadRequestError(f"{param}: {' '.join(str(error).split())}", param=param) from error


def _refuse_with_grammar(asked: SamplingFields) -> None:
    """Both would have tokens after the grammar's end, where there can be none."""
    for name, value in (("min_tokens", asked.min_tokens), ("ignore_eos", asked.ignore_eos)):
        if value:
            raise BadRequestError(f"{name} contradicts a grammar or a forced tool call: leave it out.", param=name)
