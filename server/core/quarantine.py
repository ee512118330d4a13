"""Finds out whether a request ends the engine, and then refuses it: it would end the engine for all others again.

What ran at two losses of the engine, one after the other, without having been answered in between, is a suspect. A
single suspect is refused for a while. Several run one after the other, each beside what else there is, so that the
next loss tells which of them it was; those who are answered are cleared. Requests are known by their content, which is
the same when a client sends one again. Holds a bounded number of digests, no texts.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from hashlib import blake2b
from itertools import chain

import msgspec

from server.core.plan import Plan
from server.engine_client import EngineLost
from server.errors import QuarantinedError

MOST = 1024
"""Digests that are kept of suspects, and of what is refused."""
SECONDS = 600.0
"""For which a request is refused."""
_STRIKES = 2
TWICE = "The engine was lost twice while it worked on this request."
BROKE = "The engine failed on this request, and not without it; the server's log says why."


class Quarantine:
    """For one server; in one event loop."""

    def __init__(self) -> None:
        self._running: dict[str, Plan] = {}
        self._strikes: dict[bytes, int] = {}  # losses in a row at which it ran
        self._refused: dict[bytes, tuple[float, str]] = {}  # until when, and why
        self._number = 0  # of the last loss
        self._one_by_one = asyncio.Lock()

    @asynccontextmanager
    async def watch(self, plan: Plan) -> AsyncIterator[None]:
        """For the time in which the request runs; a suspect waits for its turn.

        Raises QuarantinedError, also in the place of an EngineLost, for a request that is not to be sent again.
        """
        self._check(plan)
        async with self._one_by_one if self._is_suspect(plan) else nullcontext():
            self._check(plan)  # it may have been another's like it that had the turn
            self._running[plan.id] = plan
            try:
                yield
            except EngineLost as error:  # here, while all that ran are still listed
                self._settle(error)
                self._check(plan)
                raise
            finally:
                del self._running[plan.id]
        if self._strikes:  # it was answered
            self._strikes.pop(_digest(plan), None)

    def refuse(self, plan: Plan, why: str) -> QuarantinedError:
        """Has requests like it refused from now on; the error for this one."""
        self._refuse(_digest(plan), why)
        return _error(why)

    def _settle(self, error: EngineLost) -> None:
        """Takes a loss into account, once."""
        if error.number <= self._number:
            return
        self._number = error.number
        ids = {request_id.rsplit("-", 2)[0] for request_id in error.running}
        digests = {_digest(plan) for plan_id, plan in self._running.items() if plan_id in ids}
        strikes = sorted(((self._strikes.get(one, 0) + 1, one) for one in digests), reverse=True)
        self._strikes = {one: number for number, one in strikes[:MOST]}
        suspects = [one for one, number in self._strikes.items() if number >= _STRIKES]
        if len(suspects) == 1:
            del self._strikes[suspects[0]]
            self._refuse(suspects[0], TWICE)

    def _refuse(self, digest: bytes, why: str) -> None:
        self._refused.pop(digest, None)
        self._refused[digest] = (time.monotonic() + SECONDS, why)
        while len(self._refused) > MOST:
            del self._refused[next(iter(self._refused))]

    def _check(self, plan: Plan) -> None:
        if not self._refused:
            return
        until, why = self._refused.get(_digest(plan), (0.0, ""))
        if until > time.monotonic():
            raise _error(why)

    def _is_suspect(self, plan: Plan) -> bool:
        return bool(self._strikes) and self._strikes.get(_digest(plan), 0) >= _STRIKES


def _error(why: str) -> QuarantinedError:
    return QuarantinedError(
        f"{why} It is refused for {SECONDS / 60:g} minutes from then on, since others would suffer."
    )


def _digest(plan: Plan) -> bytes:
    """Of all that is generated; prompts that choices share are taken once."""
    digest = blake2b(msgspec.msgpack.encode(plan.adapter), digest_size=16)
    seen = set[int]()
    for part in chain.from_iterable(choice.parts for choice in plan.choices):
        if id(part.prompt_ids) not in seen:
            seen.add(id(part.prompt_ids))
            digest.update(msgspec.msgpack.encode(part.prompt_ids))
        digest.update(msgspec.msgpack.encode((part.sampling, part.answer)))
    return digest.digest()
