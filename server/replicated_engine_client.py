"""Several engines as one: each generation goes to one of them (`server.routing`), and what is told of them is summed.

It takes requests as soon as one of the engines does. Where one ends, the generations that ran on it fail, and the
others go on.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

import msgspec

from engine.messages import Adapter, Delta, Generate, PageGroup, Ready, Stats
from server.engine_client import Deltas, EngineClient, EngineLost, EngineStatus, EngineUnavailable, ReaderBehind
from server.routing import Router


class ReplicatedEngineClient:
    """`replicas` serve the same model with the same options."""

    def __init__(self, replicas: Sequence[EngineClient]) -> None:
        self.replicas = replicas
        self._router = Router(len(replicas))

    @property
    def status(self) -> EngineStatus:
        """That of the one which is furthest: ready where one of them is. A final loss of any ends them all."""
        statuses = [one.status for one in self.replicas]
        final = next((one for one in statuses if one.final), None)
        if final is not None:
            return final
        return max(statuses, key=lambda one: (_ORDER.index(one.state), one.fraction))

    @property
    def ready(self) -> Ready | None:
        """The facts of one, with the places and pages of all that take requests now."""
        serving = self._serving() or range(len(self.replicas))
        told = [ready for ready in (self.replicas[one].ready for one in serving) if ready is not None]
        if not told:
            return None
        places, groups = sum(one.max_num_seqs for one in told), _summed([one.page_groups for one in told])
        return msgspec.structs.replace(told[0], max_num_seqs=places, page_groups=groups)

    @property
    def stats(self) -> Stats | None:
        """Summed over those that have told any."""
        told = [stats for stats in (one.stats for one in self.replicas) if stats is not None]
        if not told:
            return None
        return Stats(
            running=sum(one.running for one in told),
            waiting=sum(one.waiting for one in told),
            page_groups=_summed([one.page_groups for one in told]),
            preemptions=sum(one.preemptions for one in told),
            step_tokens=tuple(map(sum, zip(*(one.step_tokens for one in told if one.step_tokens), strict=True))),
            step_tokens_sum=sum(one.step_tokens_sum for one in told),
        )

    @property
    def restarts(self) -> Mapping[str, int]:
        """By cause, how often one of them ended and was started again."""
        return sum((Counter(one.restarts) for one in self.replicas), Counter[str]())

    async def start(self) -> None:
        """Returns at once; they come up beside each other."""
        await asyncio.gather(*(one.start() for one in self.replicas))

    async def close(self) -> None:
        """Ends them all; running requests fail with EngineUnavailable."""
        await asyncio.gather(*(one.close() for one in self.replicas))

    def generate(self, request: Generate, kind: str = "") -> Deltas:
        """Deltas of one request, from the replica that it is routed to."""
        serving = self._serving()
        if not serving:
            status = self.status
            raise EngineUnavailable(f"the engine is {status.state}: {status.detail}")
        chosen = self._router.begin(
            request.request_id,
            request.prompt_ids,
            serving,
            kind=kind,
            limit=request.sampling.max_tokens + (0 if request.then is None else request.then.sampling.max_tokens),
            places=min(ready.max_num_seqs for one in serving if (ready := self.replicas[one].ready) is not None),
            salt=(request.cache_salt, 0 if request.adapter is None else request.adapter.id),
        )
        try:
            deltas = self.replicas[chosen].generate(request, kind)
        except BaseException:
            self._router.end(request.request_id, is_whole=False)
            raise
        return _RoutedDeltas(deltas, self._router, request.request_id)

    def is_running(self, request_id: str) -> bool:
        """Whether an engine works on a request."""
        replica = self._router.replica_of(request_id)
        return replica is not None and self.replicas[replica].is_running(request_id)

    def abort(self, request_id: str) -> None:
        """Ends a request that runs."""
        replica = self._router.replica_of(request_id)
        if replica is not None:
            self.replicas[replica].abort(request_id)

    def prioritize(self, request_id: str, priority: int) -> None:
        """Gives a request that runs another priority."""
        replica = self._router.replica_of(request_id)
        if replica is not None:
            self.replicas[replica].prioritize(request_id, priority)

    async def load_adapter(self, adapter: Adapter) -> None:
        """On all that take requests now; another loads it with the first request for it."""
        serving = self._serving()
        if not serving:
            raise EngineUnavailable(f"the engine is {self.status.state}: {self.status.detail}")
        await asyncio.gather(*(self.replicas[one].load_adapter(adapter) for one in serving))

    def unload_adapter(self, adapter_id: int) -> None:
        """On all of them."""
        for one in self.replicas:
            one.unload_adapter(adapter_id)

    def _serving(self) -> list[int]:
        return [number for number, one in enumerate(self.replicas) if one.status.state == "ready"]


class _RoutedDeltas:
    """The deltas of a replica, counted as they are read."""

    def __init__(self, deltas: Deltas, router: Router, request_id: str) -> None:
        self._deltas = deltas
        self._router = router
        self._request_id = request_id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        try:
            delta = await anext(self._deltas)
        except EngineLost:
            replica = self._router.replica_of(self._request_id)
            if replica is not None:
                self._router.forget(replica)
            self._router.end(self._request_id, is_whole=False)
            raise
        except (StopAsyncIteration, EngineUnavailable, ReaderBehind):
            self._router.end(self._request_id, is_whole=False)
            raise
        self._router.drew(self._request_id, len(delta.token_ids))
        if delta.finish is not None:
            self._router.end(self._request_id, is_whole=delta.finish != "abort")
        return delta

    async def aclose(self) -> None:
        """No more are wanted."""
        await self._deltas.aclose()
        self._router.end(self._request_id, is_whole=False)


_ORDER = ("closed", "lost", "loading", "ready")


def _summed(told: Sequence[tuple[PageGroup, ...]]) -> tuple[PageGroup, ...]:
    """The pages of the same group, of all replicas together."""
    return tuple(
        PageGroup(
            group=groups[0].group,
            page_size=groups[0].page_size,
            used=sum(one.used for one in groups),
            cached=sum(one.cached for one in groups),
            free=sum(one.free for one in groups),
        )
        for groups in zip(*(one for one in told if one), strict=False)
    )
