"""What a key may spend: buckets that fill with time, reservations that are settled, limits of a mode beside its own."""

from contextlib import ExitStack

import pytest

from server.access.keys import Key, Limits
from server.access.quota import ANYONE, Account, Bucket, Caller
from server.errors import BadRequestError, ForbiddenError, RateLimitError

HASH = "sha256:" + "0" * 64


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def account(clock: Clock, **fields: object) -> Account:
    return Account(Key(name="anna", hash=HASH, **fields), clock)  # type: ignore[arg-type]


def headers(caller: Caller) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in caller.limit_headers}


def test_a_bucket_fills_over_a_minute(clock: Clock) -> None:
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert (bucket.level(), bucket.seconds_until(3)) == (0, 3)
    clock.now += 2
    assert (bucket.level(), bucket.seconds_until(3)) == (2, 1)
    clock.now += 1000
    assert bucket.level() == 60


def test_a_debt_is_paid_before_anything_is_given(clock: Clock) -> None:
    bucket = Bucket(60, clock)
    bucket.take(90)
    assert bucket.seconds_until(1) == 31
    assert bucket.seconds_until(1000) == 90, "as much as it can hold"


def test_without_keys_nothing_is_counted() -> None:
    ANYONE.check("standard", 10**6)
    with ANYONE.spending("standard", 10**9):
        assert not ANYONE.limit_headers


def test_requests_a_minute(clock: Clock) -> None:
    asked = account(clock, limits=Limits(requests_per_minute=2))
    for left in ("1", "0"):
        caller = Caller(asked)
        caller.check("standard", 1)
        with caller.spending("standard", 5):
            assert headers(caller)["x-ratelimit-remaining-requests"] == left
    caller = Caller(asked)
    with pytest.raises(RateLimitError) as refused:
        caller.check("standard", 1)
    assert refused.value.retry_after == 30
    assert "limit 2, remaining 0, requested 1" in refused.value.message
    assert "anna" in refused.value.message
    assert headers(caller) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    clock.now += 30
    Caller(asked).check("standard", 1)


def test_tokens_are_laid_aside_and_settled_as_they_were_used(clock: Clock) -> None:
    asked = account(clock, limits=Limits(tokens_per_minute=1000))
    first, second, third = Caller(asked), Caller(asked), Caller(asked)
    with first.spending("standard", 800) as spent:
        assert headers(first) == {
            "x-ratelimit-limit-tokens": "1000",
            "x-ratelimit-remaining-tokens": "200",
            "x-ratelimit-reset-tokens": "48s",
        }
        with pytest.raises(RateLimitError) as refused, second.spending("standard", 300):
            pass
        assert (refused.value.kind, refused.value.retry_after) == ("tokens", 6)
        spent.used = 100
    with third.spending("standard", 300) as spent:
        assert headers(third)["x-ratelimit-remaining-tokens"] == "600"
        spent.used = 300


def test_more_than_a_minutes_tokens_run_when_nothing_else_was_used_and_are_a_debt(clock: Clock) -> None:
    asked = account(clock, limits=Limits(tokens_per_minute=1000))
    with Caller(asked).spending("reasoning", 64_000) as spent:
        spent.used = 3000
    with pytest.raises(RateLimitError) as refused:
        Caller(asked).check("reasoning", 1)
    assert refused.value.retry_after == 121


def test_an_error_settles_too(clock: Clock) -> None:
    asked = account(clock, limits=Limits(tokens_per_minute=1000, running=1))

    def fail() -> None:
        with Caller(asked).spending("standard", 900) as spent:
            spent.used = 10
            raise BadRequestError("no")

    with pytest.raises(BadRequestError):
        fail()
    with Caller(asked).spending("standard", 990):
        pass


def test_requests_at_once(clock: Clock) -> None:
    asked = account(clock, limits=Limits(running=2), mode_limits={"reasoning": Limits(running=1)})
    with ExitStack() as running:
        running.enter_context(Caller(asked).spending("reasoning", 1))
        with pytest.raises(RateLimitError, match="in mode reasoning"):
            Caller(asked).check("reasoning", 1)
        running.enter_context(Caller(asked).spending("standard", 1))
        with pytest.raises(RateLimitError) as refused:
            Caller(asked).check("standard", 1)
        assert refused.value.retry_after == 1
    Caller(asked).check("reasoning", 1)


def test_what_one_scope_refuses_the_other_does_not_count(clock: Clock) -> None:
    limits = Limits(requests_per_minute=10)
    asked = account(clock, limits=limits, mode_limits={"reasoning": Limits(tokens_per_minute=10)})
    with Caller(asked).spending("reasoning", 10):
        pass
    with pytest.raises(RateLimitError), Caller(asked).spending("reasoning", 10):
        pass
    caller = Caller(asked)
    with caller.spending("standard", 10):
        assert headers(caller)["x-ratelimit-remaining-requests"] == "8"


def test_modes_and_choices(clock: Clock) -> None:
    asked = account(clock, modes=("standard",), limits=Limits(n=4))
    Caller(asked).check("standard", 4)
    with pytest.raises(ForbiddenError, match="the modes standard, not the mode reasoning"):
        Caller(asked).check("reasoning", 1)
    with pytest.raises(BadRequestError, match="5 choices are more than the 4") as refused:
        Caller(asked).check("standard", 5)
    assert refused.value.param == "n"


def test_what_was_used_stays_used_when_the_limit_changes(clock: Clock) -> None:
    asked = account(clock, limits=Limits(tokens_per_minute=1000, requests_per_minute=5))
    running = Caller(asked).spending("standard", 400)
    spent = running.__enter__()
    asked.adopt(Key(name="anna", hash=HASH, limits=Limits(tokens_per_minute=500, running=1)))
    with pytest.raises(RateLimitError, match="running"):
        Caller(asked).check("standard", 1)
    spent.used = 300
    running.__exit__(None, None, None)
    caller = Caller(asked)
    with caller.spending("standard", 0):
        assert headers(caller)["x-ratelimit-remaining-tokens"] == "200"
        assert "x-ratelimit-limit-requests" not in headers(caller)


def test_the_limit_that_leaves_least_is_told(clock: Clock) -> None:
    limits, of_mode = Limits(requests_per_minute=100), Limits(requests_per_minute=10)
    caller = Caller(account(clock, limits=limits, mode_limits={"reasoning": of_mode}))
    with caller.spending("reasoning", 1):
        assert headers(caller)["x-ratelimit-limit-requests"] == "10"
        assert headers(caller)["x-ratelimit-reset-requests"] == "6s"
