"""Which replicas may serve, as the router knows it, and how each says so: also to a router that was started anew.

That one knows nothing. So a replica says again and again what it serves and, as long as its engine takes no requests,
that it does not. Who asks for the others meanwhile gets those of before.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from deploy.ray.fleet import Told

JOIN_TURNS = 20
"""After so many turns a replica says again what it serves."""


class Members:
    """What the router knows. `version`: replicas of the same have to serve the same `facts`."""

    def __init__(self) -> None:
        self._facts: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, str] = {}
        self._unready = set[str]()

    def join(self, version: str, facts: dict[str, Any]) -> str:
        """Empty if a replica of this version may serve beside the others; else what is wrong, in words."""
        known = self._facts.setdefault(version, facts)
        differing = [name for name in facts if facts[name] != known.get(name)]
        if not differing:
            return ""
        told = "; ".join(f"{name} is {facts[name]!r} and not {known.get(name)!r}" for name in differing)
        refusal = f"a replica serves something else than the others: {told}; give all machines the same files."
        self.fail(version, refusal)
        return refusal

    def fail(self, version: str, reason: str) -> None:
        """A replica of this version did not start."""
        self._failures[version] = reason

    def failure(self, version: str) -> str:
        """Why a replica of this version did not start; empty if none failed. It is told once."""
        return self._failures.pop(version, "")

    def note(self, name: str, *, is_ready: bool) -> None:
        """Whether a replica's engine takes requests: one that was lost is coming back."""
        if is_ready:
            self._unready.discard(name)
        else:
            self._unready.add(name)

    def able(self, there: Iterable[str]) -> list[str]:
        """Of the names of all that there are, those that take requests; all, where none does."""
        names = list(there)
        self._unready.intersection_update(names)
        return [name for name in names if name not in self._unready] or names


class Telling:
    """What a replica tells the router, by `tell` (what was drawn, whether its engine takes requests) and `join`."""

    def __init__(self, tell: Callable[[dict[str, Told], bool], object], join: Callable[[], object]) -> None:
        self._tell = tell
        self._join = join
        self._was_ready = True
        self._turns = 0

    def turn(self, told: dict[str, Told], *, is_ready: bool) -> None:
        """Takes place several times a second."""
        if told or not (is_ready and self._was_ready):
            self._tell(told, is_ready)
        self._was_ready = is_ready
        self._turns += 1
        if self._turns % JOIN_TURNS == 0:
            self._join()


class Peers:
    """The URLs of the other replicas: what `ask` told of last, where it fails with `failure`."""

    def __init__(self, ask: Callable[[], Awaitable[Sequence[str]]], failure: type[Exception]) -> None:
        self._ask = ask
        self._failure = failure
        self._known: Sequence[str] = ()

    async def __call__(self) -> Sequence[str]:
        """Raises ConnectionError where none are known."""
        try:
            self._known = await self._ask()
        except self._failure as error:
            if not self._known:
                raise ConnectionError("the router is being started") from error
        return self._known
