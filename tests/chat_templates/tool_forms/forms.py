"""The text that a model of each form would write for given calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from chat_templates.tool_forms.form import (
    BareKeyCalls,
    CallForm,
    JsonCalls,
    NamedJsonCalls,
    NestedCalls,
    PythonCalls,
    TaggedCalls,
)

Call = tuple[str, dict[str, Any]]

ONE_A_SECTION = {"hermes", "qwen3-coder", "glm", "mistral", "gemma4", "harmony"}
"""Of which a model opens a new section for each call."""


def written(form: CallForm, calls: Sequence[Call]) -> str:
    """One section, without `open`, as a model would write it."""
    match form:
        case JsonCalls():
            objects = [_object(form, index, call) for index, call in enumerate(calls)]
            text = (
                _json(objects) if form.is_list else form.inside + form.between.join(map(_json, objects)) + form.inside
            )
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
            texts = [_tagged(form, call, index) for index, call in enumerate(calls, 1)]
            text = (form.space if form.call_open else "") + "".join(text + form.space for text in texts)
        case NestedCalls():
            texts = [form.call_open + name + form.name_end + _nested(form, args) for name, args in calls]
            text = "\n" + "".join(text + form.call_close + "\n" for text in texts)
        case BareKeyCalls():
            text = "".join(form.call_open + name + _bare(form, arguments) for name, arguments in calls)
        case PythonCalls():
            texts = [f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" for name, arguments in calls]
            text = f"[{', '.join(texts)}]" if form.is_list else "\n".join(texts)
    return text + form.close


def _object(form: JsonCalls, index: int, call: Call) -> dict[str, Any]:
    name, arguments = call
    if form.by_name:
        return {name: arguments}
    return {**({form.id: str(index)} if form.id else {}), form.name: name, form.arguments: arguments}


def opening(form: CallForm) -> str:
    """What stands before a section's calls."""
    return (form.lead if isinstance(form, TaggedCalls) else "") + form.open


_TYPES = {bool: "boolean", int: "number", float: "number", list: "array"}


def _tagged(form: TaggedCalls, call: Call, index: int) -> str:
    name, arguments = call
    number = form.index_open + str(index) if form.index_open else ""
    parts = [form.call_open + name + number + form.name_end]
    for key, value in arguments.items():
        is_text = isinstance(value, str)
        json_end = form.json_key_ends.get(_TYPES.get(type(value), ""), form.key_end)
        end = form.text_key_end if is_text and form.text_key_end else json_end
        trimmed = "\n" if form.trims else ""
        parts.append(
            form.param_open + key + end + trimmed + (value if is_text else _json(value)) + trimmed + form.param_close
        )
    return form.space.join([*parts, *([form.call_close] if form.call_close else [])])


def _nested(form: NestedCalls, value: Any) -> str:
    match value:
        case str():
            return value
        case dict():
            fields = list(value.items())
        case list():
            fields = [(form.item, item) for item in value]
        case _:
            return _json(value)
    return "".join(f"{form.mark}<{key}>{_nested(form, item)}{form.mark}</{key}>" for key, item in fields)


def _bare(form: BareKeyCalls, value: Any) -> str:
    match value:
        case str():
            return form.quote + value + form.quote
        case dict():
            return "{" + ",".join(f"{key}:{_bare(form, item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ",".join(_bare(form, item) for item in value) + "]"
    return _json(value)


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
