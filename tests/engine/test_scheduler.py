"""How long the steps of one round may take, as the environment says it."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torch and vLLM deprecate of each other is not for these tests to fail on
    from engine.vllm_internals.prompt_parts import seconds_of

SWITCH = "TWOGEAR_MULTI_STEP_MS"


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("40", 0.04), ("2.5", 0.0025)])
def test_milliseconds_are_taken(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, text)
    assert seconds_of(SWITCH) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "-1", "inf", "nan", "40ms"])
def test_anything_else_is_refused_by_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, text)
    with pytest.raises(ValueError, match="TWOGEAR_MULTI_STEP_MS must be a number of milliseconds"):
        seconds_of(SWITCH)
