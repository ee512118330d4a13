"""How long the steps of one round may take, as the environment says it, and how many steps there are."""

import warnings
from types import SimpleNamespace
from typing import Any, cast

import pytest
from vllm.v1.core.sched.interface import PauseState

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torch and vLLM deprecate of each other is not for these tests to fail on
    from engine.conversion import sampling_params
    from engine.messages import Sampling
    from engine.vllm_internals.prompt_parts import seconds_of
    from engine.vllm_internals.scheduler import MultiStepScheduler

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


def steps_of(*drawn_and_held: tuple[int, int], after_prompt: bool = False) -> int:
    """How many steps follow where requests run that have drawn so many tokens each, and hold so many."""
    running = [
        SimpleNamespace(
            sampling_params=sampling_params(Sampling(max_tokens=200), (0,), held),
            num_output_tokens=drawn,
            max_tokens=200,
            num_tokens=10 + drawn,
            num_computed_tokens=9 + drawn,
            use_structured_output=False,
            priority=0,
        )
        for drawn, held in drawn_and_held
    ]
    scheduler: Any = SimpleNamespace(
        _steps=0 if after_prompt else 1,
        pause_state=PauseState.UNPAUSED,
        get_request_counts=lambda: (len(running), 0),
        max_num_running_reqs=64,
        running=running,
        _longest=0.04,
        _step_seconds=0.001,
        max_model_len=4096,
        max_num_scheduled_tokens=4096,
        _has_pages=lambda _: True,
        _first_token_goes_before=lambda: False,
    )
    return MultiStepScheduler._next_steps(cast("MultiStepScheduler", scheduler))


def test_a_round_ends_where_a_draft_has_its_tokens() -> None:
    """Beyond that they are as any others."""
    assert steps_of((1, 0)) == steps_of((8, 8)) == steps_of((20, 8)) == 32
    assert steps_of((1, 8)) == 7
    assert steps_of((5, 8)) == 3
    assert steps_of((5, 8), (1, 3), (40, 0)) == 2


def test_after_a_prompt_a_draft_has_no_haste_with_its_second_token() -> None:
    assert steps_of((1, 0), after_prompt=True) == 1
    assert steps_of((1, 8), after_prompt=True) == 7
    assert steps_of((1, 8), (9, 0), after_prompt=True) == 1
