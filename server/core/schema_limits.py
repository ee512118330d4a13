"""Refuses JSON schemas that no answer fits or that no sensible answer needs, before a grammar is made of them.

A number in a schema can be small to write and very large to compile; an object that requires itself has no end.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from server.core.schemas import Schema, parts_of

MOST = {
    **dict.fromkeys(("minItems", "maxItems", "minContains", "maxContains", "minProperties", "maxProperties"), 100_000),
    **dict.fromkeys(("minLength", "maxLength"), 2**31 - 1),  # the library counts no further
}
MOST_FORCED = 512
"""Characters that may be forced at once (`most_forced`): the library takes 0.5 ms a token for 1000 of them."""
DEFINITIONS = ("$defs", "definitions")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
NODE = 8
"""Characters around a value: brackets, quotes, separators."""
LARGEST_DIVISOR = 20_000
"""Of `multipleOf`, apart from what 2, 5 and the decimal point add: its grammar has a state for each remainder."""


def check(schema: Schema) -> None:
    """Raises ValueError, and RecursionError for what is nested too deep."""
    _check_numbers(schema)
    if _requires_itself(schema):
        raise ValueError("an object in this schema requires itself: no answer could fit it and end")


def _check_numbers(schema: Any) -> None:
    if not isinstance(schema, dict):
        return
    for name, most in MOST.items():
        value = schema.get(name)
        if isinstance(value, int | float) and value > most:
            raise ValueError(f"{name} is {value}, and at most {most} is taken")
    divisor = schema.get("multipleOf")
    if isinstance(divisor, int | float) and not isinstance(divisor, bool) and _remainders(divisor) > LARGEST_DIVISOR:
        raise ValueError(f"multipleOf is {divisor}, which has too many remainders to keep apart")
    for part in parts_of(schema):
        _check_numbers(part)


def _remainders(divisor: float) -> int:
    """The digits of `divisor` as a whole number, without its factors 2 and 5."""
    value = int("".join(map(str, Decimal(str(divisor)).as_tuple().digits)))
    for factor in (2, 5):
        while value and value % factor == 0:
            value //= factor
    return value


def _requires_itself(schema: Schema) -> bool:
    """Whether no finite value fits `schema`, as far as references within it tell.

    The least fixpoint: a reference is finite once all that it must hold is.
    """
    targets = {reference: target(schema, reference) for reference in references(schema)}
    finite: set[str] = set()
    while found := {name for name, target in targets.items() if name not in finite and _is_finite(target, finite)}:
        finite |= found
    return not _is_finite(schema, finite | {reference for reference in targets if not reference.startswith("#")})


def most_forced(schema: Schema) -> int:
    """How many characters an answer may have in a row that can come in one way only, at most.

    What all parts of the schema would write one after the other, each as often as it has to be repeated; far more, as a
    rule, than what is forced. Where a schema refers back to what it is a part of, there is a choice, or it would have
    no end. Raises RecursionError for what is nested too deep.
    """
    known: dict[str, int] = {}

    def at(part: Any) -> int:
        if not isinstance(part, dict):
            return NODE
        size, reference = _own_text(part), part.get("$ref")
        if isinstance(reference, str):
            if reference not in known:
                known[reference] = 0
                known[reference] = at(target(schema, reference))
            size += known[reference]
        least = part.get("minItems")
        times = max(1, int(least)) if isinstance(least, int | float) else 1
        for key, value in part.items():
            if key not in DEFINITIONS:
                size += (times if key == "items" else 1) * sum(map(at, parts_of({key: value})))
        return size

    return at(schema)


def _own_text(part: dict[str, Any]) -> int:
    """Characters of names and values that stand in `part` itself."""
    size = NODE + max((_json_length(value) for value in _list_at(part, "enum")), default=0)
    size += sum(_json_length(part[name]) for name in ("const", *BOUNDS) if name in part)
    names = part.get("properties")
    names = [*names] if isinstance(names, dict) else []
    return size + sum(_json_length(name) + NODE for name in {*names, *map(str, _list_at(part, "required"))})


def _list_at(part: dict[str, Any], name: str) -> list[Any]:
    value = part.get(name)
    return value if isinstance(value, list) else []


def _json_length(value: Any) -> int:
    """In characters, as it is written in an answer; a number without an exponent."""
    return len(f"{value:f}") if isinstance(value, float) else len(json.dumps(value, ensure_ascii=False))


def references(value: Any) -> Iterator[str]:
    """All that stand anywhere in `value`."""
    ahead = [value]
    while ahead:
        one = ahead.pop()
        if isinstance(one, dict):
            if isinstance(one.get("$ref"), str):
                yield one["$ref"]
            ahead += one.values()
        elif isinstance(one, list):
            ahead += one


def target(schema: Any, reference: str) -> Any:
    """What the reference names; True, which anything fits, where that is not within `schema`: others see to that."""
    if not reference.startswith("#"):
        return True
    found = schema
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            return True
    return found


def _is_finite(schema: Any, finite: set[str]) -> bool:
    """Whether a finite value fits, if the references in `finite` have one and no others do."""
    if not isinstance(schema, dict) or "const" in schema or "enum" in schema:
        return True
    if isinstance(schema.get("$ref"), str) and schema["$ref"] not in finite:
        return False
    for name, enough in (("allOf", all), ("anyOf", any), ("oneOf", any)):
        parts = schema.get(name)
        if isinstance(parts, list) and parts and not enough(_is_finite(part, finite) for part in parts):
            return False
    return all(_is_finite(part, finite) for part in _needed(schema))


def _needed(schema: dict[str, Any]) -> Iterator[Any]:
    """The schemas of what a value must hold; none where it may be of a kind that holds nothing."""
    if schema.get("type") in ("object", ["object"]):
        names, properties = schema.get("required"), schema.get("properties")
        if isinstance(names, list) and isinstance(properties, dict):
            yield from (properties[name] for name in names if isinstance(name, str) and name in properties)
    if schema.get("type") in ("array", ["array"]):
        least, first = schema.get("minItems"), schema.get("prefixItems")
        first = first if isinstance(first, list) else []
        if isinstance(least, int) and least > 0:
            yield from first[:least]
            if least > len(first):
                yield schema.get("items")
