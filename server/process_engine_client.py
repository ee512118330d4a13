"""The engine client of a process on this machine: each request a message to it, each one's deltas a stream from it.

Knows token ids, not chat; imports neither torch nor vLLM.
"""

import asyncio
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from engine.messages import Abort, Adapter, Delta, Failed, Generate, Prioritize, Ready, Reload, Reloaded, Stats, Step
from server.delta_stream import DeltaStream
from server.engine_client import (
    EngineClient,
    EngineError,
    EngineStatus,
    EngineUnavailable,
    ReaderBehind,
    RequestBroke,
    RequestFailed,
)
from server.engine_supervisor import ONE, EngineSupervisor, OfRequests
from server.pacer import Pacer

logger = logging.getLogger("twogear.engine")

# Safe path: a folder called `server` where the user stands must not shadow ours.
ENVIRONMENT = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
"""Of every engine process, beside this one's."""


class ProcessEngineClient:
    """One engine process, started again when it dies (`server.engine_supervisor`).

    `engine_options` are vLLM's own; `environment` is added to this process's. `adapters` are loaded before it takes
    requests: one that cannot be loaded ends the first start. `most_seconds` is the longest that a step may take.
    `losses` numbers the engine's ends, beside those of others; by itself from 1 on.
    `name` is what the log calls it. `pacer`: that of all engines; its own by default.
    """

    def __init__(
        self,
        model: str,
        engine_options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        *,
        adapters: Sequence[Adapter] = (),
        most_seconds: float = 300.0,
        losses: Iterator[int] | None = None,
        name: str = ONE,
        pacer: Pacer | None = None,
    ) -> None:
        self._pacer = pacer or Pacer()
        self._streams: dict[str, DeltaStream] = {}
        self._prefilling: dict[str, int] = {}  # request id → prompt tokens, until its first tokens come
        self._reloading: asyncio.Future[None] | None = None
        self._supervisor = EngineSupervisor(
            self,
            ["--model", model, "--", *engine_options],
            {**os.environ, **ENVIRONMENT, **(environment or {})},
            adapters=adapters,
            most_seconds=most_seconds,
            losses=losses,
            name=name,
        )

    @property
    def replicas(self) -> Sequence[EngineClient]:
        """Itself."""
        return (self,)

    @property
    def status(self) -> EngineStatus:
        """Where the engine is in its life."""
        return self._supervisor.status

    @property
    def ready(self) -> Ready | None:
        """The engine's last Ready message; kept while it restarts."""
        return self._supervisor.ready

    @property
    def stats(self) -> Stats | None:
        """The engine's last Stats message; None while it is down."""
        return self._supervisor.stats

    @property
    def restarts(self) -> Mapping[str, int]:
        """By cause, how often the engine ended and was started again."""
        return self._supervisor.restarts

    @property
    def pid(self) -> int | None:
        """The engine process; None while there is none."""
        return self._supervisor.pid

    async def start(self) -> None:
        """Returns at once; the engine comes up in the background."""
        self._supervisor.start()

    async def close(self) -> None:
        """Ends the engine, gently if it answers; running requests fail with EngineUnavailable."""
        await self._supervisor.close()

    def generate(self, request: Generate, kind: str = "") -> DeltaStream:  # noqa: ARG002 - there is one engine
        """Deltas of one request, the last with `finish`; closing them earlier aborts the request.

        They raise EngineUnavailable, also in the middle, RequestFailed, and ReaderBehind. Raises these too, and
        ValueError for an id that is in use.
        """
        self._check_ready()
        if request.request_id in self._streams:
            raise ValueError(f"request id {request.request_id} is in use")
        try:
            self._supervisor.send(request)
        except OverflowError as error:
            raise RequestFailed(f"a number is too large: {error}") from error
        leave = partial(self._leave, request.request_id)
        stream = self._streams[request.request_id] = DeltaStream(leave, self._pacer, request.held_tokens)
        self._pacer.streams += 1
        self._prefilling[request.request_id] = len(request.prompt_ids)
        return stream

    def is_running(self, request_id: str) -> bool:
        """Whether the engine works on a request. Where it does not any more, some deltas may still be unread."""
        return request_id in self._streams

    def abort(self, request_id: str) -> None:
        """Ends a request that runs. Its reader gets what has come, and then ReaderBehind."""
        self._drop(request_id).fail(ReaderBehind())
        self._supervisor.await_report()
        self._supervisor.send(Abort(request_id))

    def prioritize(self, request_id: str, priority: int) -> None:
        """Gives a request that runs another priority: where pages run out, the higher loses its own first."""
        self._supervisor.send(Prioritize(request_id, priority))

    async def reload(self, folder: Path) -> None:
        """Has the engine take the weights of another checkpoint of the same shape, while no request runs.

        For training, where the engine draws from a model that changes. An engine that dies starts with its own
        checkpoint again. Raises EngineUnavailable, and RequestFailed where the weights stay as they are.
        """
        self._check_ready()
        self._reloading = asyncio.get_running_loop().create_future()
        self._supervisor.send(Reload(str(folder)))
        await self._reloading

    async def load_adapter(self, adapter: Adapter) -> None:
        """Has the engine load a LoRA adapter, and again whenever it is started anew.

        Raises EngineUnavailable, and RequestFailed where it cannot be loaded.
        """
        self._check_ready()
        await self._supervisor.adapters.load(adapter)

    def unload_adapter(self, adapter_id: int) -> None:
        """Has the engine forget an adapter; what runs with it goes on."""
        self._supervisor.adapters.unload(adapter_id)

    @property
    def running(self) -> Collection[str]:
        """The ids of the generations under way."""
        return self._streams.keys()

    @property
    def prefilling_tokens(self) -> int:
        """Prompt tokens of those whose first token is awaited."""
        return sum(self._prefilling.values())

    def take(self, message: OfRequests) -> None:
        """Called by the supervisor with what the engine sent."""
        match message:
            case Step(deltas):
                for delta in deltas:
                    self._deliver(delta)
            case Reloaded(error):
                self._on_reloaded(None if error is None else RequestFailed(error))
            case Failed(text, request_id, is_broken) if request_id in self._streams:
                self._drop(request_id).fail(_broken(request_id, text) if is_broken else RequestFailed(text))

    def fail(self, error: EngineUnavailable) -> None:
        """Called by the supervisor when the engine has ended."""
        streams, self._streams = self._streams, {}
        self._pacer.streams -= len(streams)
        self._prefilling.clear()
        for stream in streams.values():
            stream.fail(error)
        self._on_reloaded(error)

    def _check_ready(self) -> None:
        status = self.status
        if status.state != "ready":
            raise EngineUnavailable(f"the engine is {status.state}: {status.detail}")

    def _leave(self, request_id: str, stream: DeltaStream) -> None:
        """The reader is gone."""
        if self._streams.get(request_id) is stream:
            self.abort(request_id)

    def _deliver(self, delta: Delta) -> None:
        stream = self._streams.get(delta.request_id)
        if stream is None:  # aborted while the step ran
            return
        is_taken = stream.put(delta)
        if not is_taken:
            self._supervisor.send(Abort(delta.request_id))
        if delta.finish is not None or not is_taken:
            self._drop(delta.request_id)
        elif self._prefilling:
            self._prefilling.pop(delta.request_id, None)

    def _drop(self, request_id: str) -> DeltaStream:
        self._prefilling.pop(request_id, None)
        self._pacer.streams -= 1
        return self._streams.pop(request_id)

    def _on_reloaded(self, error: EngineError | None) -> None:
        if self._reloading is None or self._reloading.done():
            return
        if error is None:
            self._reloading.set_result(None)
        else:
            self._reloading.set_exception(error)


def _broken(request_id: str, text: str) -> RequestBroke:
    logger.error("The engine cannot compute request %s; others go on. %s", request_id, text)
    return RequestBroke("the engine failed on this request, and not without it; the server's log says why")
