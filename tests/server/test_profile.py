"""Profiles: the one we ship, and that a wrong one is told in one line what is wrong."""

from pathlib import Path

import pytest

from server.cli_errors import UsageError
from server.modes.profile import MODES, PROFILE_FOLDER, load_profile

SHIPPED = PROFILE_FOLDER / "exaone4.toml"


def test_every_shipped_profile_is_valid() -> None:
    for path in PROFILE_FOLDER.glob("*.toml"):
        profile = load_profile(path)
        assert all(profile.of(mode).template == mode for mode in MODES)


def test_the_default_profile_is_the_contracts() -> None:
    profile = load_profile(SHIPPED)
    standard, reasoning = profile.standard, profile.reasoning
    assert profile.default_mode == "standard"
    assert (standard.temperature, standard.top_p, standard.default_max_tokens) == (0.0, 1.0, 256)
    assert (reasoning.temperature, reasoning.top_p, reasoning.default_max_tokens) == (0.6, 0.95, 64000)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("temperature = 0.6", 'temperature = "hot"', "$.reasoning.temperature"),
        ("temperature = 0.6", "temperature = 3.0", "$.reasoning.temperature"),
        ("temperature = 0.6", "temprature = 0.6", "temprature"),
        ("answer_reserve = 512", "", "answer_reserve"),
        ('template = "reasoning"', 'template = "standard"', "$.reasoning.template"),
        ('default_mode = "standard"', 'default_mode = "fast"', "$.default_mode"),
        ("[standard]", "[standard", "line"),
        ("medium = 0.5", "medium = 0.1", "$.reasoning.effort_shares"),
        ("medium = 0.5", "", "medium"),
        ("# [reasoning.answer]\n# temperature = 0.0", "[reasoning.answer]\ntemperature = 9.0", "$.reasoning.answer"),
        ("[standard]", "[standard]\nthinking_budget = 3", "thinking_budget"),
    ],
)
def test_a_wrong_profile_is_told_in_one_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "wrong.toml"
    text = SHIPPED.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UsageError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert told in message
    assert str(path) in message
    assert "\n" not in message


def test_a_missing_profile(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the profile"):
        load_profile(tmp_path / "none.toml")
