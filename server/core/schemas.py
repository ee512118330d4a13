"""Closes JSON schemas: an object has the properties that its schema lists and no others, unless the schema says more.

JSON Schema lets unlisted properties through, OpenAI's strict mode and vLLM do not, and a model that may add properties
can go on until its limit. What fits the closed schema fits the schema too (members of a `oneOf` are told apart by what
they list). Knows no grammars.
"""

from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any] | bool

_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_ONE = ("items", "contains", "additionalProperties", "not", "if", "then", "else")
_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
# Beside listed properties these add others, which closing either part would forbid.
_ADDING = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas")
_OPENING = ("additionalProperties", "patternProperties", "unevaluatedProperties")


def closed(schema: Schema) -> Schema:
    """`schema` with every object closed; as it is where objects are put together of parts. Raises RecursionError."""
    return schema if _composes(schema) else _closed(schema)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    made = with_parts(schema, lambda part, _: _closed(part))
    if isinstance(schema.get("properties"), dict) and not any(key in schema for key in _OPENING):
        made["additionalProperties"] = False
    return made


def with_parts(schema: dict[str, Any], change: Callable[[Any, str], Any]) -> dict[str, Any]:
    """`schema` with every schema directly in it as `change` makes it of it and of its place (`properties.a`)."""
    made = dict(schema)
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, dict):
            made[key] = {name: change(part, f"{key}.{name}") for name, part in value.items()}
        elif key in _SEVERAL and isinstance(value, list):
            made[key] = [change(part, f"{key}[{index}]") for index, part in enumerate(value)]
        elif key in _ONE:
            made[key] = change(value, key)
    return made


def _composes(schema: Any) -> bool:
    """Whether any object has properties from more than one part, or a condition is on what else it has."""
    if not isinstance(schema, dict):
        return False
    parts = schema.get("allOf")
    if "not" in schema or "if" in schema or (isinstance(parts, list) and len(parts) > 1):
        return True
    if "properties" in schema and any(key in schema for key in _ADDING):
        return True
    return any(map(_composes, parts_of(schema)))


def parts_of(schema: dict[str, Any]) -> Iterator[Any]:
    """The schemas directly in `schema`."""
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, dict):
            yield from value.values()
        elif key in _SEVERAL and isinstance(value, list):
            yield from value
        elif key in _ONE:
            yield value
