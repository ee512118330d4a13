"""Refuses JSON schemas that no answer fits or that no sensible answer needs, before a grammar is made of them.

A number in a schema can be small to write and very large to compile; an object that requires itself has no end.
"""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from server.core.schemas import Schema, parts_of

MOST = {
    **dict.fromkeys(("minItems", "maxItems", "minContains", "maxContains", "minProperties", "maxProperties"), 100_000),
    **dict.fromkeys(("minLength", "maxLength"), 2**31 - 1),  # the library counts no further
}
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
