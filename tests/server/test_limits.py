"""How a token limit is divided: budgets hold, and an answer follows if there is room for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadRequestError, ContextLengthError
from server.modes.limits import plan_thinking, token_limit
from server.modes.mode import ThinkClosing
from server.modes.profile import PROFILE_FOLDER, Profile, load_profile
from tests.styles import direct_of, thinking_of

CLOSING = (7, 8, 8)
ENDS = ThinkClosing(wrap_ups=((1, 2, 3, 4, 5), (5,), ()), tag=CLOSING[:1], separator=CLOSING[1:])


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(PROFILE_FOLDER / "twogear_tiny.toml")


@given(limit=st.integers(1, 2000), budget=st.none() | st.integers(0, 2000))
def test_thinking_and_answer_share_the_limit(profile: Profile, limit: int, budget: int | None) -> None:
    plan = plan_thinking(limit, budget, thinking_of(profile), ENDS)
    thinking = plan.max_tokens + len(plan.wrap_up)
    assert plan.max_tokens >= 0
    if limit <= len(CLOSING):
        assert plan.max_tokens == (limit if budget is None else min(limit, budget))
        return
    answer = limit - thinking - len(CLOSING)
    assert answer >= 1
    assert answer >= min(thinking_of(profile).answer_reserve, limit // 4) or thinking == 0
    if budget is not None:
        assert thinking <= budget
        assert plan.bound_by == ("budget" if thinking == budget else "length")


def test_a_budget_within_the_limit_is_used_up_to_its_last_token(profile: Profile) -> None:
    for budget in range(100):
        plan = plan_thinking(2000, budget, thinking_of(profile), ENDS)
        assert plan.max_tokens + len(plan.wrap_up) == budget
        assert len(plan.wrap_up) <= budget // 2


def test_the_default_limit_is_the_modes_or_what_the_context_leaves(profile: Profile) -> None:
    assert token_limit(None, "max_tokens", direct_of(profile), 100, 131072) == 256
    assert token_limit(None, "max_tokens", thinking_of(profile), 100, 131072) == 64000
    assert token_limit(None, "max_tokens", thinking_of(profile), 100, 2000) == 1900
    assert token_limit(1900, "max_tokens", thinking_of(profile), 100, 2000) == 1900


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(profile: Profile) -> None:
    with pytest.raises(ContextLengthError, match=r"2000 tokens.*2001.*100 .*1901"):
        token_limit(1901, "max_tokens", thinking_of(profile), 100, 2000)
    with pytest.raises(ContextLengthError):
        token_limit(None, "max_tokens", direct_of(profile), 2000, 2000)


def test_a_limit_above_the_modes_is_refused(profile: Profile) -> None:
    with pytest.raises(BadRequestError) as caught:
        token_limit(200_000, "max_completion_tokens", direct_of(profile), 1, 10**6)
    assert caught.value.param == "max_completion_tokens"


@pytest.mark.parametrize("limit", [1, len(CLOSING)])
def test_a_limit_too_small_for_closing_and_answer_does_not_lift_the_budget(profile: Profile, limit: int) -> None:
    assert plan_thinking(limit, 0, thinking_of(profile), ENDS).max_tokens == 0
    assert plan_thinking(limit, None, thinking_of(profile), ENDS).max_tokens == limit
