"""Profiles: those that we ship are valid, and a wrong one gets one line that says what is wrong."""

from pathlib import Path
from typing import Any

import pytest

from server.cli_errors import UsageError
from server.modes.profile import PROFILE_FOLDER, AutoMode, Dialects, DirectMode, ThinkingMode, load_profile
from tests.styles import direct_of, thinking_of

SHIPPED = PROFILE_FOLDER / "twogear_tiny.toml"


def test_every_shipped_profile_has_the_modes_of_the_contract() -> None:
    """But for those that its family cannot be in; standard is the default where it can. Beside them a family may have
    its template's own levels as modes, and `auto` where its template lets the model choose.
    """
    kinds = {"standard": DirectMode, "reasoning": ThinkingMode}
    for path in PROFILE_FOLDER.glob("*.toml"):
        profile = load_profile(path)
        modes = [name for name in kinds if name in profile.modes]
        levels = {name: mode for name, mode in profile.plain.items() if name in _levels_of(mode)}
        adaptive = [name for name, mode in profile.modes.items() if _leaves_the_choice(mode)]
        others = {name: type(mode) for name, mode in profile.modes.items() if name not in {*levels, *adaptive}}
        assert others == {name: kinds[name] for name in modes}
        assert set(adaptive) <= {"auto"}
        on, off = (name if name in modes else None for name in ("reasoning", "standard"))
        assert (profile.default_mode, profile.dialects) == (modes[0], Dialects(on=on, off=off))


def _leaves_the_choice(mode: object) -> bool:
    return isinstance(mode, AutoMode) and mode.template_variables is not None


def _levels_of(mode: DirectMode | ThinkingMode) -> dict[Any, Any]:
    return mode.levels.of if isinstance(mode, ThinkingMode) and mode.levels is not None else {}


def test_the_default_profile_is_the_contracts() -> None:
    profile = load_profile(SHIPPED)
    standard, reasoning = direct_of(profile), thinking_of(profile)
    assert (standard.temperature, standard.top_p, standard.default_max_tokens) == (0.0, 1.0, 256)
    assert (reasoning.temperature, reasoning.top_p, reasoning.default_max_tokens) == (0.6, 0.95, 64000)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("temperature = 0.6", 'temperature = "hot"', "$.modes[...].temperature"),
        ("temperature = 0.6", "temperature = 3.0", "$.modes[...].temperature"),
        ("temperature = 0.6", f"temperature = 0.6\ntop_k = {2**63}", "$.modes[...].top_k"),
        ("temperature = 0.6", "temprature = 0.6", "temprature"),
        ("answer_reserve = 512", "", "answer_reserve"),
        ('kind = "thinking"', 'kind = "slow"', "slow"),
        ('kind = "thinking"', "", "kind"),
        ("[modes.standard]", "[modes.Standard]", "$.modes"),
        ('on = "reasoning"', 'on = "standard"', "dialects.on is 'standard', which must be one of reasoning"),
        ('off = "standard"', 'off = "fast"', "dialects.off is 'fast', which must be one of standard"),
        (
            'default_mode = "standard"',
            'default_mode = "fast"',
            "default_mode is 'fast', which must be one of standard, reasoning",
        ),
        ("[modes.standard]", "[modes.standard", "line"),
        ("medium = 0.5", "medium = 0.1", "$.modes[...].effort_shares"),
        ("medium = 0.5", "", "medium"),
        (
            "# [modes.reasoning.answer]\n# temperature = 0.0",
            "[modes.reasoning.answer]\ntemperature = 9.0",
            "answer: Expected `float` <= 2.0 - at `$.temperature`",
        ),
        ("[modes.standard]", "[modes.standard]\nthinking_budget = 3", "thinking_budget"),
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


def test_the_embedded_models_profile_alone_has_a_short_default() -> None:
    """A real checkpoint's answers and JSON are not cut where a client names no limit."""
    short = {
        path.stem
        for path in PROFILE_FOLDER.glob("*.toml")
        for mode in load_profile(path).plain.values()
        if mode.default_max_tokens is not None and mode.default_max_tokens < 16_384
    }
    assert short == {"twogear_tiny"}
