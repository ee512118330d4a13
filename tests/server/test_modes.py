"""Which mode a request is in, and that contradictions name both fields."""

import pytest

from server.errors import BadRequestError, UnknownModelError
from server.modes.resolve import Choice, mode_of_field, mode_of_model, model_names, resolve_mode


def test_names_of_a_model() -> None:
    assert model_names("m") == ["m", "m:standard", "m:reasoning"]
    assert mode_of_model("m", "m") is None
    assert mode_of_model("a:b:reasoning", "a:b") == Choice("model", "reasoning")


@pytest.mark.parametrize("name", ["x", "m:", "m:deep", "m:Reasoning", ""])
def test_other_names_are_unknown(name: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        mode_of_model(name, "m")
    assert (caught.value.param, caught.value.code, caught.value.status) == ("model", "model_not_found", 404)


def test_an_unknown_mode_is_told_the_valid_ones() -> None:
    with pytest.raises(BadRequestError, match='"standard" or "reasoning"') as caught:
        mode_of_field("deep")
    assert caught.value.param == "reasoning_mode"


def test_choices_that_agree_and_none_at_all() -> None:
    both = [Choice("model", "reasoning"), Choice("reasoning_mode", "reasoning")]
    assert resolve_mode([*both, None], "standard") == "reasoning"
    assert resolve_mode([None, None], "standard") == "standard"


def test_a_contradiction_names_both_fields() -> None:
    with pytest.raises(BadRequestError, match=r"model asks .* reasoning_mode for standard") as caught:
        resolve_mode([Choice("model", "reasoning"), Choice("reasoning_mode", "standard")], "standard")
    assert caught.value.param == "reasoning_mode"
