"""Tables of the fields of bodies and answers, made from their models."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from server.api.common.fields import INT64
from server.api.completions.admission import DEFAULT_MAX_TOKENS
from server.api.completions.body import CompletionRequest
from server.modes.profile import PROFILE_FOLDER, ThinkingMode, load_profile

SHOWN_PROFILE = PROFILE_FOLDER / "twogear_tiny.toml"
"""Whose defaults the tables show."""
LIMITS = {  # in the profile, of the fields that have their defaults there under another name
    "max_completion_tokens": "default_max_tokens",
    "max_tokens": "default_max_tokens",
    "max_output_tokens": "default_max_tokens",
    "thinking_token_budget": "thinking_budget",
}
Schema = dict[str, Any]
Row = Sequence[str]


def table(head: Row, rows: Iterable[Row]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def fields(kind: type[BaseModel], besides: type[BaseModel] | None = None) -> str:
    """The fields of a body that those of `besides` are not among."""
    schema = kind.model_json_schema()
    known = set(besides.model_json_schema()["properties"]) if besides else set()
    rows = (
        [f"`{path}`", _types(fields, schema), _default(kind, path, required), *_meaning(fields[0], schema)]
        for path, (fields, required) in _by_path(schema).items()
        if re.split(r"[.\[]", path, maxsplit=1)[0] not in known
    )
    return table(["field", "type", "default", "meaning", "differs"], rows)


def answer(kind: type[BaseModel]) -> str:
    """The fields of an answer."""
    schema = kind.model_json_schema()
    rows = (
        [f"`{path}`", _types(fields, schema), _meaning(fields[0], schema)[0]]
        for path, (fields, _) in _by_path(schema).items()
    )
    return table(["field", "type", "meaning"], rows)


def _by_path(schema: Schema) -> dict[str, tuple[list[Schema], bool]]:
    """For each field its schemas, of which objects of several kinds have several; and whether it is required."""
    found: dict[str, tuple[list[Schema], bool]] = {}
    for kind in _kinds(schema, schema):
        for path, field, required in _walk(kind, schema, ""):
            found.setdefault(path, ([], required))[0].append(field)
    return found


def _walk(schema: Schema, root: Schema, path: str) -> Iterator[tuple[str, Schema, bool]]:
    """Path, schema and whether it is required, of each field, depth first."""
    for name, field in schema.get("properties", {}).items():
        inner = f"{path}.{name}" if path else name
        yield inner, field, name in schema.get("required", ())
        for one in _kinds(field, root):
            if one.get("type") == "array":
                for item in _kinds(one["items"], root):
                    yield from _walk(item, root, f"{inner}[]")
            else:
                yield from _walk(one, root, inner)


def _kinds(schema: Schema, root: Schema) -> list[Schema]:
    """The kinds of value that a schema allows, without null and without references."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _kinds(root["$defs"][name], root)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return [kind for option in options for kind in _kinds(option, root)]
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": one} for one in schema["type"] if one != "null"]
    return [] if schema.get("type") == "null" else [schema]


def _types(schemas: list[Schema], root: Schema) -> str:
    return " or ".join(dict.fromkeys(_type(schema, root) for schema in schemas))


def _type(schema: Schema, root: Schema) -> str:
    kinds = [schema] if "enum" in schema else _kinds(schema, root)
    return " or ".join(dict.fromkeys(_one_type(kind, root) for kind in kinds)) or "null"


def _one_type(kind: Schema, root: Schema) -> str:
    if "const" in kind or "enum" in kind:
        values = [kind["const"]] if "const" in kind else [value for value in kind["enum"] if value is not None]
        return ", ".join(f"`{value}`" if isinstance(value, str) else str(value).lower() for value in values)
    match kind.get("type"):
        case "array":
            return f"list{_count(kind, 'Items')} of {_type(kind['items'], root)}"
        case "object":
            inner = kind.get("additionalProperties")
            return f"object of {_type(inner, root)}" if isinstance(inner, dict) and inner else "object"
        case "string":
            return f"string{_count(kind, 'Length', ' characters')}"
        case "integer" | "number" as name:
            return f"{name}{_range(kind)}"
    return str(kind.get("type", "any"))


def _count(kind: Schema, what: str, unit: str = "") -> str:
    least, most = kind.get(f"min{what}", 0), kind.get(f"max{what}", 0)
    if most:
        return f" ({least} to {most}{unit})"
    return " (not empty)" if least else ""


def _range(kind: Schema) -> str:
    if "exclusiveMinimum" in kind:
        start = f"above {_number(kind['exclusiveMinimum'])}"
    elif "minimum" in kind:
        start = _number(kind["minimum"])
    else:
        return ""
    most = kind["exclusiveMaximum"] - 1 if "exclusiveMaximum" in kind else kind.get("maximum", INT64)
    return f" ({start} or more)" if most == INT64 and start in ("0", "1") else f" ({start} to {_number(most)})"


def _number(value: float) -> str:
    for power in (31, 63):
        if value in (2**power - 1, -(2**power)):
            return f"-2^{power}" if value < 0 else f"2^{power}-1"
    return f"{value:g}"


def _default(kind: type[BaseModel], path: str, required: bool) -> str:
    """Of each mode, where the profile has it."""
    if (kind, path) == (CompletionRequest, "max_tokens"):
        return str(DEFAULT_MAX_TOKENS)
    name = LIMITS.get(path, path)
    if required:
        return "required"
    if name not in ThinkingMode.__struct_fields__:
        return ""
    values = [getattr(mode, name, "") for mode in load_profile(SHOWN_PROFILE).plain.values()]
    if None in values:
        return "what the limit leaves"
    return " / ".join(map(str, values if len(set(values)) > 1 else values[:1]))


def _meaning(field: Schema, root: Schema) -> tuple[str, str]:
    """The meaning, and from whom it differs; of an object without a meaning of its own, its kind's."""
    text = field.get("description") or root.get("$defs", {}).get(field.get("$ref", "").rpartition("/")[2], {})
    meaning, _, differs = (text if isinstance(text, str) else text.get("description", "")).partition("Differs: ")
    return " ".join(meaning.split()), " ".join(differs.split())
