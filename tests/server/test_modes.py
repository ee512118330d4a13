"""Which mode a request is in, and that contradictions name both fields."""

import pytest

from chat_templates.format import ChatFormat
from server.errors import BadRequestError, UnknownModelError
from server.modes.mode import Modes
from server.modes.profile import Profile
from server.modes.resolve import mode_of_model, model_names, resolve_mode
from server.modes.thinking import ModeRequest


@pytest.fixture(scope="module")
def modes(profile: Profile, fmt: ChatFormat) -> Modes:
    return Modes.of(profile, fmt)


def test_names_of_a_model(modes: Modes) -> None:
    names = model_names("m", modes)
    assert {name: mode.name for name, mode in names.items()} == {
        "m": "standard", "m:standard": "standard", "m:reasoning": "reasoning",
    }  # fmt: skip
    assert mode_of_model("m", "m", modes) is None
    assert mode_of_model("a:b:reasoning", "a:b", modes) == ModeRequest("model", "reasoning")


@pytest.mark.parametrize("name", ["x", "m:", "m:deep", "m:Reasoning", ""])
def test_other_names_are_unknown(name: str, modes: Modes) -> None:
    with pytest.raises(UnknownModelError) as caught:
        mode_of_model(name, "m", modes)
    assert (caught.value.param, caught.value.code, caught.value.status) == ("model", "model_not_found", 404)


def test_an_unknown_mode_is_told_the_valid_ones(modes: Modes) -> None:
    with pytest.raises(BadRequestError, match='"standard" or "reasoning"') as caught:
        resolve_mode([ModeRequest("reasoning_mode", "deep")], modes)
    assert caught.value.param == "reasoning_mode"


def test_requests_that_agree_and_none_at_all(modes: Modes) -> None:
    both = [ModeRequest("model", "reasoning"), ModeRequest("reasoning_mode", "reasoning")]
    assert resolve_mode([*both, None], modes).name == "reasoning"
    assert resolve_mode([None, None], modes).name == "standard"


def test_a_contradiction_names_both_fields(modes: Modes) -> None:
    with pytest.raises(BadRequestError, match=r"model asks .* reasoning_mode for standard") as caught:
        resolve_mode([ModeRequest("model", "reasoning"), ModeRequest("reasoning_mode", "standard")], modes)
    assert caught.value.param == "reasoning_mode"


@pytest.mark.parametrize("order", [1, -1])
def test_a_switch_against_a_name_names_both_fields(order: int, modes: Modes) -> None:
    asked = [ModeRequest("model", "standard"), ModeRequest("thinking.type", True)][::order]
    with pytest.raises(BadRequestError, match=f"{asked[0].field} asks for .* {asked[1].field} for") as caught:
        resolve_mode(asked, modes)
    assert caught.value.param == asked[1].field
