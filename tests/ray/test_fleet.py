"""The server's router over replicas that come and go."""

from deploy.ray.asked import Asked
from deploy.ray.fleet import UNTOLD_SECONDS, Fleet, Told

LONG = tuple(range(4000))


def asked(prompt: tuple[int, ...] = (), kind: str = "", limit: int = 1000) -> Asked:
    return Asked(prompt, kind, limit, "m")


def test_a_conversation_returns_and_others_spread() -> None:
    fleet = Fleet(8)
    home, ticket = fleet.choose(asked(LONG), ["a", "b"], 0)
    fleet.tell({ticket: Told(10, over=True)})
    assert fleet.choose(asked((*LONG, *LONG)), ["a", "b"], 0)[0] == home
    assert {fleet.choose(asked((n,) * 100), ["a", "b"], 0)[0] for n in range(4)} == {"a", "b"}


def test_who_draws_many_weighs_more() -> None:
    fleet = Fleet(8)
    for _ in range(100):
        for kind, tokens in (("think", 900), ("direct", 10)):
            _, ticket = fleet.choose(asked(kind=kind), ["a"], 0)
            fleet.tell({ticket: Told(tokens, over=True)})
    thinks, _ = fleet.choose(asked(kind="think"), ["a", "b"], 0)
    answers, _ = fleet.choose(asked(kind="direct"), ["a", "b"], 0)
    assert {thinks, answers} == {"a", "b"}
    assert fleet.least(["a", "b"]) == answers
    assert fleet.choose(asked(kind="think"), ["a", "b"], 0)[0] == answers


def test_what_ran_on_a_replica_that_is_gone_weighs_nothing() -> None:
    fleet = Fleet(8)
    for _ in range(5):
        fleet.choose(asked(), ["a"], 0)
    assert fleet.loads()["a"] > 0
    assert fleet.choose(asked(), ["b"], 0)[0] == "b"
    assert set(fleet.loads()) == {"b"}
    fleet.choose(asked(limit=1), ["a", "b"], 0)
    assert fleet.loads()["a"] <= 1


def test_replicas_may_come_and_go_without_end() -> None:
    fleet = Fleet(8)
    for number in range(3000):
        assert fleet.choose(asked(), [f"r{number}"], 0)[0] == f"r{number}"


def test_a_request_that_never_arrived_weighs_nothing_after_a_while() -> None:
    fleet = Fleet(8)
    _, gone = fleet.choose(asked(), ["a"], 0)
    _, there = fleet.choose(asked(), ["a"], 0)
    fleet.tell({there: Told()})
    both = fleet.loads()["a"]
    fleet.choose(asked(limit=1), ["a"], UNTOLD_SECONDS)
    assert fleet.loads()["a"] <= both / 2 + 1
    fleet.tell({gone: Told(5, over=True)})  # too late, and harmless


def test_what_is_over_weighs_nothing() -> None:
    fleet = Fleet(8)
    _, ticket = fleet.choose(asked(), ["a"], 0)
    fleet.tell({ticket: Told(5), "unknown": Told(7, over=False)})
    assert fleet.loads()["a"] > 0
    fleet.tell({ticket: Told(0, over=False)})
    assert fleet.loads()["a"] == 0


def test_a_router_that_is_started_anew_gives_no_ticket_twice() -> None:
    """A replica still tells of those that the one before gave."""
    before, after = (Fleet(8).choose(asked(), ["a"], 0)[1] for _ in range(2))
    assert before != after
