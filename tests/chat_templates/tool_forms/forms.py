"""The forms of the families under test, and the text that a model of each would write for given calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from chat_templates.tool_forms.form import CallForm, JsonCalls, NamedJsonCalls, PythonCalls, TaggedCalls

Call = tuple[str, dict[str, Any]]

FORMS: dict[str, CallForm] = {
    "hermes": JsonCalls(inside="\n"),
    "granite3": JsonCalls(open="<|tool_call|>", close="", is_list=True),
    "hunyuan": JsonCalls(open="<tool_calls>", close="</tool_calls>", is_list=True),
    "mistral-list": JsonCalls(open="[TOOL_CALLS]", close="", is_list=True),
    "mistral": NamedJsonCalls(open="[TOOL_CALLS]", name_end="[ARGS]", id_open="[CALL_ID]"),
    "deepseek-v3.1": NamedJsonCalls(
        open="<｜tool▁calls▁begin｜>",
        close="<｜tool▁calls▁end｜>",
        call_open="<｜tool▁call▁begin｜>",
        name_end="<｜tool▁sep｜>",
        call_close="<｜tool▁call▁end｜>",
    ),
    "deepseek-v3": NamedJsonCalls(
        open="<｜tool▁calls▁begin｜>",
        close="<｜tool▁calls▁end｜>",
        call_open="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        name_end="\n```json\n",
        call_close="\n```<｜tool▁call▁end｜>",
        between="\n",
    ),
    "kimi": NamedJsonCalls(
        open="<|tool_calls_section_begin|>",
        close="<|tool_calls_section_end|>",
        call_open="<|tool_call_begin|>",
        name_end="<|tool_call_argument_begin|>",
        call_close="<|tool_call_end|>",
        name_prefix="functions.",
        is_numbered=True,
    ),
    "qwen3-coder": TaggedCalls(
        open="<tool_call>",
        close="</tool_call>",
        call_open="<function=",
        name_end=">",
        call_close="</function>",
        param_open="<parameter=",
        key_end=">",
        param_close="</parameter>",
        trims=True,
    ),
    "seed-oss": TaggedCalls(
        open="<seed:tool_call>",
        close="</seed:tool_call>",
        call_open="<function=",
        name_end=">",
        call_close="</function>",
        param_open="<parameter=",
        key_end=">",
        param_close="</parameter>",
        shares_section=True,
    ),
    "glm": TaggedCalls(
        open="<tool_call>",
        close="</tool_call>",
        call_open="",
        name_end="",
        call_close="",
        param_open="<arg_key>",
        key_end="</arg_key>\n<arg_value>",
        param_close="</arg_value>",
    ),
    "minimax": TaggedCalls(
        open="<minimax:tool_call>",
        close="</minimax:tool_call>",
        call_open='<invoke name="',
        name_end='">',
        call_close="</invoke>",
        param_open='<parameter name="',
        key_end='">',
        param_close="</parameter>",
        shares_section=True,
    ),
    "dsml": TaggedCalls(
        open="<｜DSML｜function_calls>",
        close="</｜DSML｜function_calls>",
        call_open='<｜DSML｜invoke name="',
        name_end='">',
        call_close="</｜DSML｜invoke>",
        param_open='<｜DSML｜parameter name="',
        key_end='" string="false">',
        text_key_end='" string="true">',
        param_close="</｜DSML｜parameter>",
        shares_section=True,
    ),
    "pythonic": PythonCalls(),
    "olmo3": PythonCalls(open="<function_calls>", close="</function_calls>", is_list=False),
    "lfm2": PythonCalls(open="<|tool_call_start|>", close="<|tool_call_end|>"),
}
ONE_A_SECTION = {"hermes", "qwen3-coder", "glm", "mistral"}
"""Of which a model opens a new section for each call."""


def written(form: CallForm, calls: Sequence[Call]) -> str:
    """One section, without `open`, as a model would write it."""
    match form:
        case JsonCalls():
            objects = [{"name": name, form.arguments: arguments} for name, arguments in calls]
            text = _json(objects) if form.is_list else form.inside + "\n".join(map(_json, objects)) + form.inside
        case NamedJsonCalls():
            text = form.between.join(
                form.call_open
                + form.name_prefix
                + name
                + (f":{index}" if form.is_numbered else "")
                + form.name_end
                + _json(arguments)
                + form.call_close
                for index, (name, arguments) in enumerate(calls)
            )
        case TaggedCalls():
            text = (form.space if form.call_open else "") + "".join(_tagged(form, call) + form.space for call in calls)
        case PythonCalls():
            texts = [f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" for name, arguments in calls]
            text = f"[{', '.join(texts)}]" if form.is_list else "\n".join(texts)
    return text + form.close


def _tagged(form: TaggedCalls, call: Call) -> str:
    name, arguments = call
    parts = [form.call_open + name + form.name_end]
    for key, value in arguments.items():
        is_text = isinstance(value, str)
        end = form.text_key_end if is_text and form.text_key_end else form.key_end
        trimmed = "\n" if form.trims else ""
        parts.append(
            form.param_open + key + end + trimmed + (value if is_text else _json(value)) + trimmed + form.param_close
        )
    return form.space.join([*parts, *([form.call_close] if form.call_close else [])])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


TOOLS: Mapping[str, Any] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "share": {"type": "number"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "where": {"type": "object", "properties": {"a": {"type": "integer"}}},
            "unit": {"enum": ["C", "F"]},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["city"],
    },
    "now": {"type": "object", "properties": {}},
}
