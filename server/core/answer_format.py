"""What form a request wants its answer in: free text, JSON, some grammar, tool calls; and the grammar for that.

The grammar binds the answer only. Knows what the forms mean; the grammars are written and checked in a process apart.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from chat_templates.format import ChatFormat
from server.core.call_rules import tags_in_rule
from server.core.grammar_jobs import UNFORCED, CallsJob, Job, RuleJob, Written, unforced
from server.core.grammar_pool import POOL, PoolBusy
from server.core.plan import AnswerFormat
from server.core.request import ChoiceForm, Conversation, Form, GrammarForm, JsonForm, NamedTool, RegexForm, Request
from server.core.serving import Serving
from server.errors import BadRequestError

LARK = "%lark"
"""In a grammar: a tool's own, whose patterns may let any text through."""
ANY_TEXT = "start: TEXT\nTEXT: /(.|\\n)*/"
"""Of an answer that has no token of a header in it: where messages have headers, the server writes the answer's itself,
and no call can follow.
"""
NAME = re.compile(r"[a-zA-Z0-9_.-]+")
ANY_OBJECT: dict[str, Any] = {"type": "object"}
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
NamedSchema = tuple[str, Any]
"""A tool's name and the schema of its arguments."""


async def answer_format(request: Request, serving: Serving) -> AnswerFormat:
    """Raises BadRequestError for what contradicts itself and for what no grammar takes."""
    choice = request.tool_use.choice
    tools = named_tools(request)
    forced = _forced_tools(request, tools)
    rule = _rule(request.forms) if request.forms and not forced else None
    # A tool that is named is called once, as OpenAI and vLLM do.
    parallel = request.tool_use.parallel and not isinstance(choice, NamedTool) and not serving.fmt.has_channels
    may_call = bool(forced) or (bool(tools) and choice == "auto" and not (rule and rule.kind == "grammar"))
    is_strict = may_call and not (forced or rule) and any(map(_is_strict, _tools_of(request)))
    is_strict = is_strict and bool(serving.fmt.calls.form.open)  # without a tag nothing tells a call from text
    called = forced or (tools if may_call and rule else _strict_tools(request, tools) if is_strict else [])
    if rule or called:
        _refuse_with_grammar(request)
    grammar = await _grammar(rule, called, request, serving, parallel=parallel, is_free=is_strict)
    forbids_calls = bool(tools) and not may_call
    if grammar is None and forbids_calls and serving.fmt.has_channels and not _ends_late(request):
        grammar = ANY_TEXT
    return AnswerFormat(
        grammar=grammar,
        banned=_banned(grammar, serving.fmt),
        calls=may_call,
        calls_in_thinking=may_call and not (forced or is_strict),
        parallel=parallel,
        forbids_calls=forbids_calls,
        is_named=isinstance(choice, NamedTool),
        has_header=bool(called) and serving.fmt.has_channels,
        tools=dict(tools) if may_call else {},
    )


async def _grammar(
    rule: RuleJob | None,
    tools: list[NamedSchema],
    request: Request,
    serving: Serving,
    *,
    parallel: bool,
    is_free: bool,
) -> str | None:
    """The grammar of an answer that is one of both; None for a free one. `is_free`: any text stands around calls."""
    answer = calls = None
    is_long = False
    if rule is not None:
        written = await _written(rule, request, serving)
        answer, is_long = written.text, written.is_long
        if rule.kind == "grammar":
            return unforced(answer)
    if tools:
        job = _calls(tools, request, serving, parallel=parallel, is_free=is_free)
        written = await _written(job, request, serving)
        calls, is_long = written.text, is_long or written.is_long
    if answer is None and calls is None:
        return None
    whole = _whole(answer, calls, _header(serving.fmt))
    if is_long or _may_spell_control(rule, whole, serving.fmt):
        return unforced(whole)
    return whole


def _may_spell_control(rule: RuleJob | None, grammar: str, fmt: ChatFormat) -> bool:
    """Whether a text that fits the grammar may spell a control token that its author wrote, escaped or not."""
    is_free = (rule is not None and rule.kind == "regex") or '"pattern' in grammar
    return is_free or LARK in grammar or any(spelling in grammar for spelling in fmt.vocabulary.control)


def _banned(grammar: str | None, fmt: ChatFormat) -> tuple[int, ...]:
    """The control tokens that the engine takes for ordinary text where a grammar spells them."""
    if grammar is None or not grammar.startswith(UNFORCED):
        return ()
    return tuple(token_id for token_id in fmt.vocabulary.plain_control_ids if f"<[{token_id}]>" not in grammar)


def _calls(tools: list[NamedSchema], request: Request, serving: Serving, *, parallel: bool, is_free: bool) -> CallsJob:
    calls, vocabulary = serving.fmt.calls, serving.fmt.vocabulary
    # Free text may hold any token that the library takes for text: there the tag is found as text.
    as_text = vocabulary.plain_control_ids if is_free else frozenset()
    tokens = {spelling: token_id for spelling, token_id in calls.ids.items() if token_id not in as_text}
    params = _params_of(tools, request)
    return CallsJob(
        param=params[0] if len(params) == 1 else request.name("tools"),
        form=calls.form,
        tools=tools,
        params=params,
        tokens=tokens,
        several=parallel,
        is_free=is_free,
        texts={name: text for name, text in request.tool_use.texts.items() if name in dict(tools)},
    )


def _params_of(tools: list[NamedSchema], request: Request) -> list[str]:
    """The client's fields that the tools' schemas came in."""
    paths: dict[str, str] = {}
    for index, tool in enumerate(_tools_of(request)):
        paths.setdefault(tool["function"]["name"], f"tools[{index}].function.parameters")
    return [request.name(paths[name]) for name, _ in tools]


async def _written(job: Job, request: Request, serving: Serving) -> Written:
    try:
        return await POOL.written(job, request.received.size)
    except PoolBusy as error:
        raise serving.unavailable(str(error)) from None


def _header(fmt: ChatFormat) -> str:
    """The part of a rule for what stands before an answer that may be a call instead; mostly nothing."""
    return tags_in_rule(fmt.calls.answer_open, fmt.calls.ids)


def _whole(answer: str | None, calls: str | None, header: str) -> str:
    """Of a rule's right-hand side for the answer, of rules for calls, or both; `header`: of an answer, beside calls."""
    ways = [way for way, rules in (("answer", answer), ("calls", calls)) if rules is not None]
    rules = [f"start: {' | '.join(ways)}"]
    if answer is not None:
        rules.append(f"answer: {header} ({answer})" if header and calls is not None else f"answer: {answer}")
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


def _tools_of(request: Request) -> Sequence[Mapping[str, Any]]:
    return request.prompt.tools if isinstance(request.prompt, Conversation) else ()


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return tool["function"].get("strict") is True


def _strict_tools(request: Request, tools: list[NamedSchema]) -> list[NamedSchema]:
    """The tools with the schemas of those that are strict; the others' arguments are any object."""
    return [
        (name, schema if _is_strict(tool) else ANY_OBJECT)
        for tool, (name, schema) in zip(_tools_of(request), tools, strict=True)
    ]


def named_tools(request: Request) -> list[NamedSchema]:
    """The tools of a request whose prompt is rendered, and hence checked as far as that goes; BadRequestError."""
    if not isinstance(request.prompt, Conversation):
        return []
    return [_name_and_schema(request, tool, f"tools[{index}]") for index, tool in enumerate(request.prompt.tools)]


def _name_and_schema(request: Request, tool: Mapping[str, Any], path: str) -> NamedSchema:
    """Of a tool that has a function with a name: the prompt is rendered already, and checked with that."""
    function = tool["function"]
    longest = request.tool_use.longest_name
    if len(function["name"]) > longest or not NAME.fullmatch(function["name"]):
        raise request.refusal(
            f"{path}.function.name",
            f"a function's name has up to {longest} letters, digits, dots, underscores and dashes.",
        )
    schema = function.get("parameters")
    if schema is not None and not isinstance(schema, dict):
        raise request.refusal(f"{path}.function.parameters", "{field} must be a JSON schema.")
    return function["name"], {**ANY_OBJECT, **schema} if schema else NO_PARAMETERS


def _rule(forms: Sequence[Form]) -> RuleJob:
    """What has to be written for the one form asked for; raises BadRequestError."""
    if len(forms) > 1:
        one, other = (form.field.partition(".")[0] for form in forms[:2])
        raise BadRequestError(f"{one} and {other} both bind the answer: send only one of them.", param=other)
    form = forms[0]
    match form:
        case JsonForm(field, schema):
            return RuleJob(field, "json", schema)
        case RegexForm(field, pattern):
            return RuleJob(field, "regex", pattern)
        case ChoiceForm(field, texts):
            return RuleJob(field, "choice", texts)
        case GrammarForm(field, grammar):
            return RuleJob(field, "grammar", grammar)


def _ends_late(request: Request) -> bool:
    """Whether tokens may have to come after a grammar's end, where there can be none."""
    return bool(request.stop.min_tokens or request.stop.ignore_eos)


def _refuse_with_grammar(request: Request) -> None:
    """Both would have tokens after the grammar's end, where there can be none."""
    for name, value in (("min_tokens", request.stop.min_tokens), ("ignore_eos", request.stop.ignore_eos)):
        if value:
            raise request.refusal(name, "{field} contradicts a grammar or a forced tool call: leave it out.")
