"""The neutral request: what APIs call its fields, and that their sampling fields are those of the one definition."""

import typing

import msgspec
import pytest
from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from engine.sampling import SAMPLING_FIELDS, TokenSampling
from server.api.chat.body import ChatRequest
from server.api.common.fields import INT64, Fields
from server.api.common.sampling import SamplingFields, sampling_of
from server.api.completions.body import CompletionRequest
from server.api.tokens.body import TokenizeChatRequest
from server.core.request import Request, Texts

BOUNDS = {Ge: "ge", Gt: "gt", Le: "le"}
WIDER = {
    "top_p": {"ge": 0, "le": 1},
    "top_k": {"ge": -1, "le": INT64},
}  # -1 is no limit, as in vLLM; JSON's numbers have an end


def asked(**names: str) -> Request:
    return Request(id="x", prompt=Texts(["Once"]), names=names)


@pytest.mark.parametrize(
    ("names", "path", "name"),
    [
        ({}, "messages[0].content", "messages[0].content"),
        ({"messages": "turns"}, "messages", "turns"),
        ({"messages": "turns"}, "messages[12].content", "turns[12].content"),
        ({"messages": "turns", "messages[0].content": "system"}, "messages[0].content", "system"),
        ({"messages": "turns", "messages[0].content": "system"}, "messages[0].content[1].text", "system[1].text"),
        ({"messages": "turns", "messages[0]": "first"}, "messages[01].content", "turns[01].content"),
        ({"max": "most"}, "max_tokens", "max_tokens"),
        ({"tool_choice.name": "tool_choice.function.name"}, "tool_choice", "tool_choice"),
    ],
)
def test_a_field_has_the_longest_name_that_fits(names: dict[str, str], path: str, name: str) -> None:
    assert asked(**names).name(path) == name


def test_a_refusal_names_the_field_in_both_places() -> None:
    error = asked(max_tokens="options.num_predict").refusal("max_tokens", "{field} is too large.")
    assert (error.param, error.message) == ("options.num_predict", "options.num_predict is too large.")


def bounds_of_body(field: FieldInfo) -> dict[str, float]:
    """The range of a field that may be absent."""
    (kind,) = [option for option in typing.get_args(field.annotation) if option is not type(None)]
    (constraint,) = [part for part in typing.get_args(kind) if isinstance(part, FieldInfo)]
    return {BOUNDS[type(part)]: getattr(part, BOUNDS[type(part)]) for part in constraint.metadata}


def bounds_of_definition(name: str) -> dict[str, float]:
    (field,) = [field for field in msgspec.inspect.type_info(TokenSampling).fields if field.name == name]  # type: ignore[attr-defined]
    found = {"ge": field.type.ge, "gt": field.type.gt, "le": field.type.le}
    return {bound: value for bound, value in found.items() if value is not None}


@pytest.mark.parametrize("name", SAMPLING_FIELDS)
def test_bodies_take_the_sampling_fields_of_the_one_definition(name: str) -> None:
    field = SamplingFields.model_fields[name]
    assert bounds_of_body(field) == WIDER.get(name, bounds_of_definition(name))
    assert field.default is None


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, TokenizeChatRequest])
def test_every_body_has_them(kind: type[Fields]) -> None:
    assert set(SAMPLING_FIELDS) <= set(kind.model_fields)


def test_what_a_client_sets_is_copied_by_name() -> None:
    values = {name: 1 if name == "top_k" else 0.5 for name in SAMPLING_FIELDS}
    assert sampling_of(CompletionRequest(prompt="x", **values)) == values  # type: ignore[arg-type]
    assert sampling_of(CompletionRequest(prompt="x", top_k=-1, temperature=None)) == {"top_k": 0}
