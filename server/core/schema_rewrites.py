"""Brings JSON schemas to what the grammar library takes, where other servers take them and nothing is lost by it.

What is dropped binds nothing elsewhere either: names that are strings, formats that the library does not know (notes
for a reader, as JSON Schema has it), and `uniqueItems`, which no grammar can keep. What would be lost is refused, with
the place that it stands in. Knows no grammars.
"""

import re
from typing import Any

from server.core.schema_limits import references, target
from server.core.schemas import Schema, with_parts

FORMATS = (
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown",
)  # fmt: skip
"""Those that the library keeps (llguidance, src/json/formats.rs)."""
PLAIN_PATTERNS = {
    # Zod's `z.email()` (v4, regexes.email): no dot comes first, and no two stand together.
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$":
    r"^([A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+\-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
}  # fmt: skip
"""From patterns that look ahead to the same without."""
LOOK_AROUND = re.compile(r"(?<!\\)\(\?<?[=!]")
MOST_FREE = 1
"""Properties that may have to come beside the required ones: a grammar cannot keep the names of more of them apart."""
_TYPES = ("null", "boolean", "number", "string", "array", "object")
_DEEPEST = 32  # of references to references


def rewritten(schema: Schema) -> Schema:
    """`schema` as the library takes it; raises ValueError, and RecursionError for what is nested too deep."""
    made: Schema = _rewritten(schema, schema, "")
    return made


def refuse_look_around(pattern: str) -> None:
    """Raises ValueError for a pattern that looks ahead or behind."""
    found = LOOK_AROUND.search(pattern)
    if found:
        raise ValueError(f"look-around, here {found[0]} at character {found.start()}, is not supported in patterns")


def _rewritten(schema: Any, root: Schema, path: str) -> Any:
    if not isinstance(schema, dict):
        return schema
    made = with_parts(schema, lambda part, step: _rewritten(part, root, f"{path}.{step}" if path else step))
    if made.get("propertyNames") in (True, {}, {"type": "string"}):
        del made["propertyNames"]
    if "format" in made and made["format"] not in FORMATS:
        del made["format"]
    made.pop("uniqueItems", None)
    if isinstance(made.get("pattern"), str):
        made["pattern"] = _pattern(made["pattern"], path)
    if isinstance(made.get("oneOf"), list):
        _tell_apart(made, root)
    _check_least(made, path)
    return made


def _pattern(pattern: str, path: str) -> str:
    plain = PLAIN_PATTERNS.get(pattern, pattern)
    try:
        refuse_look_around(plain)
    except ValueError as error:
        raise ValueError(f"{path}.pattern".lstrip(".") + f": {error}") from None
    return plain


def _check_least(schema: dict[str, Any], path: str) -> None:
    """Drops a `minProperties` that is kept anyway, and refuses one that no grammar keeps."""
    least, required = schema.get("minProperties"), schema.get("required")
    if not isinstance(least, int):
        return
    free = least - (len(set(map(str, required))) if isinstance(required, list) else 0)
    if free <= 0:
        del schema["minProperties"]
    elif free > MOST_FREE and schema.get("additionalProperties") is not False:
        where = f"{path}.minProperties".lstrip(".")
        raise ValueError(
            f"{where} is {least}, with {free} properties that are not required: no grammar keeps their names apart. "
            "List them in required"
        )


def _tell_apart(schema: dict[str, Any], root: Schema) -> None:
    """Makes a `oneOf` an `anyOf` where no value is of the types of two branches. Those that share types stay together
    in a `oneOf`, as what they refer to, for the library to tell apart.
    """
    groups: list[tuple[set[str], list[Any]]] = []
    for branch in schema["oneOf"]:
        kinds, members = _kinds(branch, root), [branch]
        for other in [group for group in groups if group[0] & kinds]:
            kinds, members = kinds | other[0], other[1] + members
            groups.remove(other)
        groups.append((kinds, members))
    if len(groups) > 1 and "anyOf" not in schema:
        del schema["oneOf"]
        schema["anyOf"] = [
            members[0] if len(members) == 1 else {"oneOf": _meant(members, root)} for _, members in groups
        ]
    else:
        schema["oneOf"] = _meant(schema["oneOf"], root)


def _meant(branches: list[Any], root: Schema) -> list[Any]:
    """The same with what those refer to that are references and nothing else."""
    return [
        _rewritten(target(root, branch["$ref"]), root, "")
        if isinstance(branch, dict) and set(branch) == {"$ref"} and not _refers_to_itself(branch["$ref"], root)
        else branch
        for branch in branches
    ]


def _refers_to_itself(reference: Any, root: Schema) -> bool:
    """Whether it is found again from where it leads to, so that putting that in its place would have no end."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return True
    seen: set[str] = set()
    ahead = [reference]
    while ahead:
        for found in references(target(root, ahead.pop())):
            if found == reference:
                return True
            if found not in seen:
                seen.add(found)
                ahead.append(found)
    return False


def _kinds(schema: Any, root: Schema, depth: int = 0) -> set[str]:
    """The types that a value may have to fit `schema`, or more of them."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return set(_TYPES)
    kinds = set(_TYPES)
    if isinstance(schema.get("$ref"), str):
        kinds &= _kinds(target(root, schema["$ref"]), root, depth + 1)
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        kinds &= {"number" if name == "integer" else str(name) for name in named}
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        kinds &= set(map(_kind_of, values))
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list):
            kinds &= set().union(*(_kinds(part, root, depth + 1) for part in schema[name]))
    return kinds


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"
