"""What the values of untyped forms mean: text by a tool's schema, Python's literals, and JSON of both."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from chat_templates.tokens import replace_surrogates

_DEPTH = 8  # of references that are followed
_CALLED = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")  # of several that are there, the first counts
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
"""In JSON: of any size, also of one that Python has not."""
_CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


def parameters_of(schema: Any) -> Mapping[str, Any]:
    """The schemas of a tool's arguments by name."""
    found = schema.get("properties") if isinstance(schema, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def types_of(schema: Any, root: Any, depth: int = _DEPTH) -> frozenset[str]:
    """The JSON types that a schema names; none where it leaves them open."""
    if not isinstance(schema, Mapping) or depth == 0:
        return frozenset()
    if isinstance(reference := schema.get("$ref"), str):
        return types_of(resolved(reference, root), root, depth - 1)
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    if "const" in schema or isinstance(schema.get("enum"), list):
        return frozenset(map(_type_of, [schema["const"]] if "const" in schema else schema["enum"]))
    parts = alternatives(schema) or (schema["allOf"] if isinstance(schema.get("allOf"), list) else [])
    return frozenset().union(*(types_of(part, root, depth - 1) for part in parts))


def alternatives(schema: Any) -> list[Any]:
    """The schemas one of which a value has to fit; none where there are no such."""
    if not isinstance(schema, Mapping):
        return []
    return next((schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)), [])


def known_values(schema: Any, root: Any, depth: int = _DEPTH) -> list[Any] | None:
    """All values that a schema takes, where it lists them."""
    if not isinstance(schema, Mapping) or depth == 0:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return known_values(resolved(reference, root), root, depth - 1)
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(listed, list):
        types = types_of(schema, root)
        return [value for value in listed if _fits(value, types)] or None
    if "type" in schema:
        return None
    parts = [known_values(part, root, depth - 1) for part in alternatives(schema)]
    known = [part for part in parts if part is not None]
    return [value for part in known for value in part] if known and len(known) == len(parts) else None


def members_of(schema: Any, root: Any) -> Mapping[str, Any]:
    """The schemas of an object's values by key: its own, or those of the objects that it lists."""
    named = parameters_of(followed(schema, root))
    listed = [value for value in known_values(schema, root) or () if isinstance(value, dict)]
    keys = {key for value in listed for key in value}
    return named or {key: {"enum": [value[key] for value in listed if key in value]} for key in keys}


def items_of(schema: Any, root: Any) -> Any:
    """The schema of a list's items: its own, or that of the lists that it lists."""
    schema = followed(schema, root)
    if isinstance(schema, Mapping) and "items" in schema:
        return schema["items"]
    listed = [value for value in known_values(schema, root) or () if isinstance(value, list)]
    return {"enum": [item for value in listed for item in value]} if listed else None


def followed(schema: Any, root: Any) -> Any:
    """What a reference names; anything else as it is."""
    refers = isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str)
    return resolved(schema["$ref"], root) if refers else schema


def resolved(reference: str, root: Any) -> Any:
    """The part of `root` that a reference within it names; None if there is none."""
    part = root
    for key in reference.removeprefix("#").strip("/").split("/"):
        if key:
            part = part.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(part, Mapping) else None
    return part if reference.startswith("#") else None


def is_text(types: frozenset[str]) -> bool:
    """Whether a value of these types is text as it stands, whatever it looks like."""
    return types in (frozenset(), frozenset({"string"}))


def as_json(raw: str, types: frozenset[str]) -> str:
    """The JSON of a value that was written without quotes; text where it is none of the types."""
    stripped = raw.strip()
    try:
        value = _CONSTANTS[stripped] if stripped in _CONSTANTS else json.loads(stripped)
        fits = _fits(value, types)
        return dumped(value) if fits else dumped(raw)
    except (ValueError, RecursionError):
        is_one = _NUMBER.fullmatch(stripped) and ("number" in types or stripped.lstrip("-").isdigit())
        return stripped if is_one and not types.isdisjoint(("number", "integer")) else dumped(raw)


def dumped(value: Any) -> str:
    """JSON as Python spaces it. Raises ValueError for what is none."""
    return replace_surrogates(json.dumps(value, ensure_ascii=False, allow_nan=False))


def whole_call(text: str) -> tuple[str, str] | None:
    """Name and JSON arguments of `{"name": …, "arguments": {…}}` in any order of keys; None if it is none."""
    call = _object(text)
    if call is None or call.pop("type", "function") != "function":
        return None
    if not call.keys() <= {*_CALLED, *_ARGUMENTS, "tool_call_id"}:
        return None  # dropping other keys would lose what the model said
    name = next((call[key] for key in _CALLED if key in call), None)
    arguments = next((call[key] for key in _ARGUMENTS if key in call), None)
    if isinstance(arguments, str):
        arguments = _object(arguments)
        if arguments is None:
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict | None):
        return None
    try:
        return name, dumped(arguments or {})
    except (ValueError, RecursionError):  # Infinity and NaN are no JSON
        return None


def _object(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def python_call(text: str) -> tuple[str, str] | None:
    """Name and JSON arguments of `NAME(KEY=VALUE, …)`; None if it is none."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or node.args or any(key.arg is None for key in node.keywords):
            return None
        return ast.unparse(node.func), dumped({str(key.arg): _literal(key.value) for key in node.keywords})
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _literal(node: ast.expr) -> Any:
    """As ast.literal_eval, with JSON's names of constants too. Raises ValueError."""
    match node:
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return list(map(_literal, items))
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {str(_literal(key)) if key else "": _literal(value) for key, value in pairs}
    return ast.literal_eval(node)


_TYPES: tuple[tuple[type, str], ...] = (
    *((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object")),
)


def _type_of(value: Any) -> str:
    return next((name for kind, name in _TYPES if isinstance(value, kind)), "null")


def _fits(value: Any, types: frozenset[str]) -> bool:
    if not types:
        return True
    kind = _type_of(value)
    return (
        kind in types
        or (kind == "integer" and "number" in types)
        or (kind == "number" and "integer" in types and float(value).is_integer())
    )
