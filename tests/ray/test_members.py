"""What replicas tell the router, and a router that is started anew."""

from collections.abc import Sequence

import pytest

from deploy.ray.fleet import Told
from deploy.ray.members import JOIN_TURNS, Members, Peers, Telling

OWN = {"models": "m", "profile": "1"}


class Replica:
    """One of `VERSION`, and the router that it tells: `router` may be put in the place of the one before."""

    VERSION = "v"

    def __init__(self, name: str, router: Members) -> None:
        self.router = router
        self.told: list[dict[str, Told]] = []
        self._name = name
        self._telling = Telling(self._tell, lambda: self.router.join(self.VERSION, OWN))

    def turns(self, number: int, *, is_ready: bool = True) -> None:
        for _ in range(number):
            self._telling.turn({}, is_ready=is_ready)

    def _tell(self, told: dict[str, Told], is_ready: bool) -> None:
        self.told.append(told)
        self.router.note(self._name, is_ready=is_ready)


def test_who_serves_something_else_than_the_first_is_refused_and_told_of_once() -> None:
    router = Members()
    assert router.join("v", OWN) == router.join("v", dict(OWN)) == ""
    refusal = router.join("v", {**OWN, "profile": "2"})
    assert "profile is '2' and not '1'" in refusal
    assert router.failure("v") == refusal
    assert router.failure("v") == ""
    assert router.join("w", {**OWN, "profile": "2"}) == ""  # an update may serve another


def test_a_router_that_is_started_anew_learns_what_is_served() -> None:
    """Before replicas said it again, the next one to come was the measure, and the others were refused."""
    replica = Replica("a", Members())
    replica.turns(1)
    replica.router = Members()
    replica.turns(JOIN_TURNS)
    assert "profile" in replica.router.join("v", {**OWN, "profile": "2"})
    assert replica.router.join("v", OWN) == ""


def test_a_router_that_is_started_anew_learns_whose_engine_is_lost() -> None:
    """Before, only the change was told, and the lost one got requests."""
    replica = Replica("a", Members())
    replica.turns(1, is_ready=False)
    assert replica.router.able(["a", "b"]) == ["b"]
    replica.router = Members()
    assert replica.router.able(["a", "b"]) == ["a", "b"]
    replica.turns(1, is_ready=False)
    assert replica.router.able(["a", "b"]) == ["b"]
    assert replica.router.able(["a"]) == ["a"]  # none is better: it says in words what it lacks
    replica.turns(1)
    assert replica.router.able(["a", "b"]) == ["a", "b"]


def test_a_replica_that_is_well_and_has_nothing_to_tell_is_silent() -> None:
    replica = Replica("a", Members())
    replica.turns(JOIN_TURNS)
    assert replica.told == []


def test_nothing_is_kept_of_a_replica_that_is_gone() -> None:
    router = Members()
    router.note("a", is_ready=False)
    assert router.able(["b"]) == ["b"]
    assert router.able(["a", "b"]) == ["a", "b"]


async def test_the_others_are_those_of_before_while_the_router_is_started_anew() -> None:
    answers: list[Sequence[str] | Exception] = [KeyError(), ["http://b"], KeyError(), ["http://c"]]

    async def ask() -> Sequence[str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    peers = Peers(ask, KeyError)
    with pytest.raises(ConnectionError):
        await peers()
    assert [await peers(), await peers(), await peers()] == [["http://b"], ["http://b"], ["http://c"]]
