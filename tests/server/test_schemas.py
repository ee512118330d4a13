"""Schemas of answers: which are closed to properties that they do not list, and that nothing else of them changes."""

import copy
import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core import grammars, schema_rewrites
from server.core.schemas import Schema, closed
from tests.server.test_answer_format import fits

NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
SHUT = {**NAME, "additionalProperties": False}
AGE = {"type": "object", "properties": {"age": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (NAME, SHUT),
        ({"type": "array", "items": NAME}, {"type": "array", "items": SHUT}),
        ({"anyOf": [NAME, {"type": "null"}]}, {"anyOf": [SHUT, {"type": "null"}]}),
        (
            {"$ref": "#/$defs/N", "$defs": {"N": {**NAME, "properties": {"of": {"$ref": "#/$defs/N"}}}}},
            {"$ref": "#/$defs/N", "$defs": {"N": {**SHUT, "properties": {"of": {"$ref": "#/$defs/N"}}}}},
        ),
        ({"type": "object", "additionalProperties": NAME}, {"type": "object", "additionalProperties": SHUT}),
        (
            {"type": "object", "properties": {}},
            {"type": "object", "properties": {}, "additionalProperties": False},
        ),
    ],
)
def test_objects_that_list_their_properties_are_closed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    before = copy.deepcopy(schema)
    assert closed(schema) == expected
    assert schema == before


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"type": "object"},
        {**NAME, "additionalProperties": True},
        {**NAME, "patternProperties": {"^x": {}}},
        {"allOf": [NAME, AGE]},
        {**NAME, "anyOf": [AGE, {}]},
        {"type": "array", "items": {"$ref": "#/$defs/N", "properties": {"x": {}}}, "$defs": {"N": NAME}},
        {"const": {"properties": {"a": 1}}},
        {"enum": [{"properties": {"a": 1}}], "default": {"properties": {}}},
        {"if": NAME, "then": AGE},
        {"not": NAME},
    ],
)
def test_what_says_more_is_left_as_it_is(schema: Any) -> None:
    assert closed(schema) == schema


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    leaf: st.SearchStrategy[dict[str, Any]] = st.sampled_from([{"type": "integer"}, {"type": "string"}, {}])
    names = st.sampled_from(["a", "b", "properties", "items", "anyOf"])

    def wider(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        objects = st.dictionaries(names, inner, max_size=3).map(lambda made: {"type": "object", "properties": made})
        unions = st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
        return objects | unions | inner.map(lambda items: {"type": "array", "items": items})

    return st.recursive(leaf, wider, max_leaves=5)


VALUES = st.recursive(
    st.sampled_from([1, "x", None]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "b", "properties", "items", "other"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(schema=schemas(), value=VALUES)
def test_what_fits_the_closed_schema_fits_the_schema(schema: dict[str, Any], value: Any) -> None:
    narrow = closed(schema)
    assert isinstance(narrow, dict)
    if jsonschema.Draft202012Validator(narrow).is_valid(value):
        assert jsonschema.Draft202012Validator(schema).is_valid(value)


def test_an_answer_has_no_property_that_its_schema_does_not_list() -> None:
    grammar = f"start: answer\nanswer: {grammars.of_schema(NAME)}"
    assert fits(grammar, '{"name": "x"}')
    assert not fits(grammar, json.dumps({"name": "x", "more": 1}))
    assert fits(f"start: answer\nanswer: {grammars.of_schema({'type': 'object'})}", '{"any": 1}')


ZOD = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
CAT = {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]}


def takes(schema: Schema, text: str) -> bool:
    """Whether the grammar that is made of `schema` takes the whole text and can end there."""
    return fits(f"start: {grammars.of_schema(schema)}", text)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"oneOf": [{"type": "null"}, {"$ref": "#/$defs/C"}], "$defs": {"C": CAT}}, ["null", '{"kind": "cat"}'], ["3"]),
        (
            {"oneOf": [{"type": "null"}, {"$ref": "#/$defs/C"}, {"$ref": "#/$defs/D"}], "$defs": {"C": CAT, "D": DOG}},
            ["null", '{"kind": "cat"}', '{"kind": "dog"}'],
            ['{"kind": "cow"}'],
        ),
        (
            {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}},
            ['{"a": 1}'],
            ['{"a": "b"}'],
        ),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, ["[1, 2]"], ['["a"]']),
        ({"type": "object", "minProperties": 1, "additionalProperties": True}, ['{"a": 1}'], ["{}"]),
        (
            {"type": "object", "minProperties": 2, "properties": {"a": {}, "b": {}}, "required": ["a", "b"]},
            ['{"a": 1, "b": 2}'],
            ['{"a": 1}'],
        ),
        (
            {"type": "string", "format": "email", "pattern": ZOD},
            ['"a.b+c@d-e.org"', '"a@b.co"', '"a\'b@c.de"'],
            ['".a@b.co"', '"a..b@c.de"', '"a.@b.co"', '"a@b"', '"a@b.c"', '"a@-b.co"'],
        ),
        *(
            ({"type": "string", "format": name}, ['"/tmp/a b"'], ["3"])
            for name in ("path", "binary", "password", "base64", "uri-reference")
        ),
    ],
)
def test_schemas_that_other_servers_take(schema: Schema, right: list[str], wrong: list[str]) -> None:
    assert all(takes(schema, text) for text in right)
    assert not any(takes(schema, text) for text in wrong)


@given(st.text(alphabet="ab.'+@-_", max_size=8), st.text(alphabet="ab.-", max_size=5))
def test_the_pattern_without_looking_ahead_says_the_same(local: str, domain: str) -> None:
    plain = schema_rewrites.PLAIN_PATTERNS[ZOD]
    for text in (f"{local}@{domain}.co", f"a{local}@b.co"):
        assert (re.match(ZOD, text) is None) == (re.match(plain, text) is None)


def test_one_of_that_refers_to_itself_ends() -> None:
    node = {"oneOf": [{"type": "null"}, {"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}
    holder = {"type": "object", "properties": {"k": {"const": "a"}, "n": node}, "required": ["k", "n"]}
    other = {"type": "object", "properties": {"k": {"const": "b"}, "n": node}, "required": ["k", "n"]}
    schema: Schema = {**node, "$defs": {"A": holder, "B": other}}
    assert schema_rewrites.rewritten(schema)
