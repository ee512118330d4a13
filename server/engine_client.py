"""The front end's view of an engine: requests in, deltas out, and a process that is started, watched and restarted.

`EngineClient` is what the HTTP part takes as an argument; `ProcessEngineClient` is the one that runs
`python -m engine` on this machine. Knows token ids and processes, not chat; imports neither torch nor vLLM.

Exceptions that `generate` raises; their texts may be told to clients, and hold nothing of the engine's inside:
    EngineError
    ├── EngineUnavailable   loading or closed: nothing is wrong with the request, 503
    │   └── EngineLost      the engine ended while it worked on the request: 503
    └── RequestFailed       the engine refused this request: 400
        └── RequestBroke    a step failed on this request, and on it alone
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec

from engine import USER_ERROR
from engine.messages import (
    PROTOCOL_VERSION,
    Abort,
    Adapter,
    AdapterLoaded,
    Delta,
    Failed,
    FromEngine,
    Generate,
    LoadAdapter,
    Loading,
    Prioritize,
    Ready,
    Reload,
    Reloaded,
    Shutdown,
    Stats,
    Step,
    ToEngine,
    UnloadAdapter,
    decode_from_engine,
)
from engine.transport import FrameBuffer, frame
from server.delta_stream import DeltaStream
from server.engine_process import GENTLE_SECONDS, EngineProcess, exit_words
from server.offload import LONG, without_gc
from server.step_watch import TICK, LoadWatch, StepWatch

logger = logging.getLogger("twogear.engine")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_STABLE_SECONDS = 60.0
"""An engine that served this long starts again after the first pause; one that keeps dying waits ever longer."""
_MOST_STARTS = 3
"""Attempts for an engine that was never ready."""
_LONG_SILENCE = 1.0
"""Seconds, more than the engine lets pass between two reports: a step that takes longer is reported at its end."""
_SHOWN_REQUESTS = 20
"""Ids that the log names of the requests that ran when the engine ended."""

Cause = Literal["crash", "killed", "error", "hang", "protocol"]
"""Why an engine ended: by itself or a signal of its own making; SIGKILL; it said so; no sign of life; no message."""


class EngineError(Exception):
    """Base of what `generate` raises."""


class EngineUnavailable(EngineError):  # noqa: N818 - reads as what it says
    """No engine takes requests now."""


class EngineLost(EngineUnavailable):
    """The engine ended while it worked on this request, and on those in `running` (request ids).

    `number` counts the ends; it is the same for all of one.
    """

    def __init__(self, message: str, number: int, running: frozenset[str]) -> None:
        super().__init__(message)
        self.number = number
        self.running = running


class RequestFailed(EngineError):  # noqa: N818
    """The engine refused this request; the message says why."""


class RequestBroke(RequestFailed):
    """A step of the engine failed on this request, and not without it."""


class EngineStatus(NamedTuple):
    """`detail` in words for a client, `fraction` of the start that lies behind, from 0 to 1.

    `final`: the engine is lost for a reason that starting it again cannot cure, so it will not be. `reason`: the same
    as `detail` for whoever runs the server, with what the engine said; it is not for clients.
    """

    state: Literal["loading", "ready", "lost", "closed"]
    detail: str
    fraction: float
    final: bool = False
    reason: str = ""


class _Ending(NamedTuple):
    """Why an engine's life is over: `public` in words for clients, `text` with what only the log may have."""

    cause: Cause
    public: str
    text: str


def _broken(request_id: str, text: str) -> RequestBroke:
    logger.error("The engine cannot compute request %s; others go on. %s", request_id, text)
    return RequestBroke("the engine failed on this request, and not without it; the server's log says why")


def _settle(awaited: "asyncio.Future[None]", error: EngineError | None) -> None:
    if error is None:
        awaited.set_result(None)
    else:
        awaited.set_exception(error)


class EngineClient(Protocol):
    """What the front end needs from an engine."""

    @property
    def status(self) -> EngineStatus:
        """Where the engine is in its life."""

    @property
    def ready(self) -> Ready | None:
        """The engine's last Ready message."""

    @property
    def stats(self) -> Stats | None:
        """The engine's last Stats message."""

    @property
    def restarts(self) -> Mapping[str, int]:
        """By cause, how often the engine ended and was started again."""

    async def start(self) -> None:
        """Returns at once; the engine comes up in the background."""

    async def close(self) -> None:
        """Ends the engine; running requests fail with EngineUnavailable."""

    def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """Deltas of one request, the last with `finish`; leaving the iterator earlier aborts the request.

        Raises EngineUnavailable, also in the middle, RequestFailed, and ReaderBehind where deltas come faster than they
        are asked for, by so much that the request was aborted.
        """

    def prioritize(self, request_id: str, priority: int) -> None:
        """Gives a request that runs another priority: where pages run out, the higher loses its own first."""

    async def load_adapter(self, adapter: Adapter) -> None:
        """Has the engine load a LoRA adapter, and again whenever it is started anew.

        Raises EngineUnavailable, and RequestFailed where it cannot be loaded.
        """

    def unload_adapter(self, adapter_id: int) -> None:
        """Has the engine forget an adapter; what runs with it goes on."""


class _EngineSocket(asyncio.Protocol):
    """The front end's end of the connection: whole messages up, and the news that the engine is gone."""

    def __init__(self, client: "ProcessEngineClient", sock: socket.socket) -> None:
        self._client = client
        self._frames = FrameBuffer()
        self._rest = sock.dup()

    def drain(self) -> None:
        """Takes what the engine sent before its end: a write that failed ends asyncio's reading at once."""
        with self._rest, contextlib.suppress(OSError):
            while data := self._rest.recv(1 << 18, socket.MSG_DONTWAIT):
                self.data_received(data)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._frames.feed(data):
                with without_gc() if len(payload) > LONG else nullcontext():
                    message = decode_from_engine(payload)
                self._client.on_message(message)
        except msgspec.MsgspecError as error:
            self._client.on_garbage(error)

    def connection_lost(
        self,
        exc: Exception | None,  # noqa: ARG002 - asyncio's signature
    ) -> None:
        self.drain()
        self._client.on_connection_lost()


class ProcessEngineClient:
    """One engine process on this machine, started again with growing pauses when it dies.

    `engine_options` are vLLM's own; `environment` is added to this process's. `adapters` are loaded before it takes
    requests: one that cannot be loaded ends the first start. After `most_seconds` with work and
    without a step, or of a start without a sign of life, an engine counts as hung; usually its own steps say so earlier
    (`server.step_watch`). A front end that ends without `close` takes the engine with it: the engine leaves when the
    connection breaks.
    """

    def __init__(
        self,
        model: str,
        engine_options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        *,
        adapters: Sequence[Adapter] = (),
        most_seconds: float = 300.0,
    ) -> None:
        self._arguments = ["--model", model, "--", *engine_options]
        # Safe path: a folder called `server` where the user stands must not shadow ours.
        self._environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._status = EngineStatus("loading", "not started", 0.0)
        self._ready: Ready | None = None
        self._stats: Stats | None = None
        self._streams: dict[str, DeltaStream] = {}
        self._reloading: asyncio.Future[None] | None = None
        self._adapters = {adapter.id: adapter for adapter in adapters}
        self._loading_adapters: dict[int, asyncio.Future[None]] = {}
        self._transport: asyncio.Transport | None = None
        self._process: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._restarts: Counter[str] = Counter()
        self._losses = 0
        self._lost_since: float | None = None
        self._prefilling: dict[str, int] = {}  # request id → prompt tokens, until its first tokens come
        self._most_seconds = most_seconds
        self._has_served = False
        self._final = False  # the first start failed on what starting again cannot cure
        self._begin_life()

    def _begin_life(self) -> None:
        """What belongs to one life of the engine."""
        self._stage = "starting the engine process"
        self._ending: _Ending | None = None
        self._running_at_end: frozenset[str] = frozenset()
        self._ended = asyncio.Event()
        self._closed = asyncio.Event()
        self._ready_since: float | None = None
        self._awaited_adapters: set[int] = set()
        self._steps = StepWatch(self._most_seconds)
        self._owes_report = False  # of a step whose clients have left
        self._load = LoadWatch(self._most_seconds)

    @property
    def status(self) -> EngineStatus:
        """Where the engine is in its life."""
        return self._status

    @property
    def ready(self) -> Ready | None:
        """The engine's last Ready message; kept while it restarts."""
        return self._ready

    @property
    def stats(self) -> Stats | None:
        """The engine's last Stats message; None while it is down."""
        return self._stats

    @property
    def restarts(self) -> Mapping[str, int]:
        """By cause, how often the engine ended and was started again."""
        return self._restarts

    @property
    def pid(self) -> int | None:
        """The engine process; None while there is none."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Returns at once; the engine comes up in the background."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def close(self) -> None:
        """Ends the engine, gently if it answers; running requests fail with EngineUnavailable."""
        self._set_status(EngineStatus("closed", "the engine is closed", 0.0))
        self._fail_streams(EngineUnavailable("the server is shutting down"))
        if self._supervisor is None:
            return
        if self._process is not None and self._transport is not None:
            if self._ready_since is not None:
                self._send(Shutdown())
            else:  # it does not read while it loads, but notices a closed connection
                self._transport.abort()
            await asyncio.wait([self._supervisor], timeout=GENTLE_SECONDS)
        self._supervisor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._supervisor
        self._supervisor = None

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """Deltas of one request, the last with `finish`; leaving the iterator earlier aborts the request.

        Raises EngineUnavailable, also in the middle, RequestFailed, and ValueError for an id that is in use.
        """
        stream = self._open(request)
        try:
            while True:
                delta = await stream.next()
                yield delta
                if delta.finish is not None:
                    return
        finally:
            if self._streams.get(request.request_id) is stream:
                self._drop(request.request_id)
                # It is in a step, at whose end there is a report whoever still listens.
                self._owes_report |= self._steps.silence >= _LONG_SILENCE
                self._send(Abort(request.request_id))

    def prioritize(self, request_id: str, priority: int) -> None:
        """Gives a request that runs another priority: where pages run out, the higher loses its own first."""
        self._send(Prioritize(request_id, priority))

    async def reload(self, folder: Path) -> None:
        """Has the engine take the weights of another checkpoint of the same shape, while no request runs.

        For training, where the engine draws from a model that changes. An engine that dies starts with its own
        checkpoint again. Raises EngineUnavailable, and RequestFailed where the weights stay as they are.
        """
        if self._status.state != "ready":
            raise EngineUnavailable(f"the engine is {self._status.state}: {self._status.detail}")
        self._reloading = asyncio.get_running_loop().create_future()
        self._send(Reload(str(folder)))
        await self._reloading

    def _on_reloaded(self, error: EngineError | None) -> None:
        if self._reloading is None or self._reloading.done():
            return
        _settle(self._reloading, error)

    async def load_adapter(self, adapter: Adapter) -> None:
        """Has the engine load a LoRA adapter, and again whenever it is started anew.

        Raises EngineUnavailable, and RequestFailed where it cannot be loaded.
        """
        if self._status.state != "ready":
            raise EngineUnavailable(f"the engine is {self._status.state}: {self._status.detail}")
        loading = self._loading_adapters[adapter.id] = asyncio.get_running_loop().create_future()
        self._send(LoadAdapter(adapter))
        try:
            await loading
        finally:
            del self._loading_adapters[adapter.id]
        self._adapters[adapter.id] = adapter

    def unload_adapter(self, adapter_id: int) -> None:
        """Has the engine forget an adapter; what runs with it goes on."""
        self._adapters.pop(adapter_id, None)
        self._send(UnloadAdapter(adapter_id))

    def _on_adapter(self, adapter_id: int, error: str | None) -> None:
        loading = self._loading_adapters.get(adapter_id)
        if loading is not None:
            if not loading.done():
                _settle(loading, None if error is None else RequestFailed(error))
        elif adapter_id in self._awaited_adapters:
            self._awaited_adapters.remove(adapter_id)
            if error is not None:
                self._on_lost_adapter(f"the adapter {self._adapters[adapter_id].name!r} cannot be loaded: {error}")
            if not self._awaited_adapters and self._ending is None:
                self._begin_serving()

    def _on_lost_adapter(self, text: str) -> None:
        """Who started the server wants to know; later, all other requests can be served."""
        if self._has_served:
            logger.error("%s; requests for it are refused", text)
        else:
            self._final = True
            self._end(_Ending("error", text, text))

    def _open(self, request: Generate) -> DeltaStream:
        if self._status.state != "ready":
            raise EngineUnavailable(f"the engine is {self._status.state}: {self._status.detail}")
        if request.request_id in self._streams:
            raise ValueError(f"request id {request.request_id} is in use")
        try:
            self._send(request)
        except OverflowError as error:
            raise RequestFailed(f"a number is too large: {error}") from error
        stream = self._streams[request.request_id] = DeltaStream()
        self._prefilling[request.request_id] = len(request.prompt_ids)
        return stream

    def _drop(self, request_id: str) -> DeltaStream:
        self._prefilling.pop(request_id, None)
        return self._streams.pop(request_id)

    def _send(self, message: ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def on_message(self, message: FromEngine) -> None:
        """Called by the connection for each message of the engine. What comes after its end is of no use."""
        if self._ending is not None:
            return
        self._owes_report = False
        match message:
            case Step(deltas):
                for delta in deltas:
                    self._deliver(delta)
                self._steps.sign(works=bool(self._streams))
            case Stats():
                self._stats = message
            case Loading(stage, fraction):
                self._stage = stage
                self._load.sign()
                self._set_status(EngineStatus("loading", stage, fraction))
            case Ready():
                self._on_ready(message)
            case Reloaded(error):
                self._on_reloaded(None if error is None else RequestFailed(error))
            case AdapterLoaded(adapter_id, error):
                self._on_adapter(adapter_id, error)
            case Failed(text, None):
                self._end(_Ending("error", "the engine failed", text))
            case Failed(text, request_id, is_broken) if request_id in self._streams:
                self._drop(request_id).fail(_broken(request_id, text) if is_broken else RequestFailed(text))

    def on_garbage(self, error: Exception) -> None:
        """Called by the connection for what is no message."""
        self._end(_Ending("protocol", "the engine failed", f"it sent what is no message: {error}"))

    def _deliver(self, delta: Delta) -> None:
        stream = self._streams.get(delta.request_id)
        if stream is None:  # aborted while the step ran
            return
        is_taken = stream.put(delta)
        if not is_taken:
            self._send(Abort(delta.request_id))
        if delta.finish is not None or not is_taken:
            self._drop(delta.request_id)
        elif self._prefilling:
            self._prefilling.pop(delta.request_id, None)

    def _on_ready(self, message: Ready) -> None:
        if message.protocol != PROTOCOL_VERSION:
            text = f"the engine speaks protocol {message.protocol}, this front end {PROTOCOL_VERSION}"
            self._end(_Ending("protocol", text, text))
            return
        self._ready = message
        for path in message.fast_paths:
            level = logging.WARNING if path.unexpected else logging.INFO
            logger.log(level, "%s: %s (%s)", path.name, "on" if path.on else "off", path.reason)
        self._awaited_adapters = set(self._adapters)
        if not self._awaited_adapters:
            self._begin_serving()
            return
        self._stage = "loading the adapters"
        self._set_status(EngineStatus("loading", self._stage, 1.0))
        for adapter in self._adapters.values():
            self._send(LoadAdapter(adapter))

    def _begin_serving(self) -> None:
        assert self._ready is not None
        self._stage = "serving"
        self._ready_since = time.monotonic()
        self._has_served = True
        self._set_status(EngineStatus("ready", self._ready.model_class, 1.0))
        if self._lost_since is not None:
            logger.warning("The engine is back, %.1f s after it was lost.", self._ready_since - self._lost_since)
            self._lost_since = None

    def on_connection_lost(self) -> None:
        """Called by the connection: usually the first sign that the process is dead."""
        self._transport = None
        self._end(None)
        self._closed.set()

    def _end(self, ending: _Ending | None) -> None:
        """This life of the engine is over; `ending` is None where only the exit status will tell why."""
        if self._ending is None:
            self._ending = ending
        public = "the engine died" if self._ending is None else self._ending.public
        if self._status.state == "ready":
            self._set_status(EngineStatus("lost", public, 0.0))
        if not self._ended.is_set():
            self._losses += 1
            self._running_at_end = frozenset(self._streams)
            self._fail_streams(
                EngineLost(f"{public} while it worked on this request", self._losses, self._running_at_end)
            )
        self._stats = None
        self._ended.set()

    def _fail_streams(self, error: EngineUnavailable) -> None:
        streams, self._streams = self._streams, {}
        self._prefilling.clear()
        for stream in streams.values():
            stream.fail(error)
        self._on_reloaded(error)
        for loading in self._loading_adapters.values():
            if not loading.done():
                loading.set_exception(error)

    def _set_status(self, status: EngineStatus) -> None:
        if self._status.state != "closed":
            self._status = status

    async def _supervise(self) -> None:
        """Runs the engine again and again; ends when it is closed or cannot come up."""
        failures = 0
        while True:
            self._begin_life()
            self._set_status(EngineStatus("loading", self._stage, 0.0))
            exit_status, ending = await self._live()
            if self._status.state == "closed":
                return
            failures = 1 if self._was_stable() else failures + 1
            if not self._has_served and (self._final or exit_status == USER_ERROR or failures == _MOST_STARTS):
                self._set_status(EngineStatus("lost", ending.public, 0.0, final=True, reason=ending.text))
                return
            self._restarts[ending.cause] += 1
            pause = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
            again = f"starting again in {pause:g} s"
            self._set_status(EngineStatus("lost", f"{ending.public}; {again}", 0.0, reason=f"{ending.text}; {again}"))
            await asyncio.sleep(pause)

    def _was_stable(self) -> bool:
        return self._ready_since is not None and time.monotonic() - self._ready_since > _STABLE_SECONDS

    async def _live(self) -> tuple[int, _Ending]:
        """One life of the engine process, from its start to its exit status (negative: the signal that ended it)."""
        began = time.monotonic()
        engine = self._process = await EngineProcess.start(self._arguments, self._environment)
        ended = asyncio.create_task(self._ended.wait())
        watch = asyncio.create_task(self._watch(engine))
        transport = None
        exit_status: int | None = None
        try:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_unix_connection(
                lambda: _EngineSocket(self, engine.socket), sock=engine.socket
            )
            self._transport = transport
            await asyncio.wait([engine.exited, ended], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([engine.exited, watch], timeout=GENTLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            ended.cancel()
            hung = self._ending is not None and self._ending.cause == "hang"
            last_lines = list(engine.last_lines) if hung else []
            if transport is not None:
                transport.abort()
                await self._closed.wait()
            exit_status = await engine.end()
            self._process = None
        ending = self._ending or self._ending_of(exit_status, engine)
        if self._status.state != "closed":
            self._tell(ending, exit_status, time.monotonic() - began, last_lines or list(engine.last_lines))
        return exit_status, ending

    async def _watch(self, engine: EngineProcess) -> None:
        """Ends when the engine hangs and its stacks are in the log."""
        lines, last = 0, time.monotonic()
        while not self._is_hung(engine, time.monotonic() - last):
            last = time.monotonic()
            if engine.lines != lines:
                lines = engine.lines
                self._load.sign()
            await asyncio.sleep(TICK)
        stacks = await engine.dump()
        logger.error("Stacks of the hung engine:\n%s", "\n".join(stacks) or "none came: it does not take signals")

    def _is_hung(self, engine: EngineProcess, seconds: float) -> bool:
        if self._ready_since is None:
            hung, watch = self._load.tick(seconds, engine.processor_time()), self._load
            text = f"no sign of life for {watch.silence:.0f} s while {self._stage}"
        else:
            due = sum(self._prefilling.values())
            hung = self._steps.tick(seconds, works=bool(self._streams) or self._owes_report, due=due)
            text = f"no step for {self._steps.silence:.0f} s with {len(self._streams)} generations under way"
        if hung and not self._ended.is_set():
            self._end(_Ending("hang", "the engine hung", text))
            return True
        return False

    def _ending_of(self, exit_status: int, engine: EngineProcess) -> _Ending:
        """Of an engine that ended without a word."""
        public = f"the engine {exit_words(exit_status)}"
        if self._ready_since is None:
            public += f" while {self._stage}"
        last = f": {engine.last_lines[-1]}" if exit_status >= 0 and engine.last_lines else ""
        return _Ending("killed" if exit_status == -signal.SIGKILL else "crash", public, public + last)

    def _tell(self, ending: _Ending, exit_status: int, seconds: float, last_lines: Sequence[str]) -> None:
        """All that is known of an engine's end, for the log."""
        self._lost_since = self._lost_since or time.monotonic()
        running = sorted(self._running_at_end)
        shown = ", ".join(running[:_SHOWN_REQUESTS]) + (", ..." if len(running) > _SHOWN_REQUESTS else "")
        ours = ending.cause != "killed" and exit_status == -signal.SIGKILL
        logger.error(
            "The engine was lost. Cause: %s; stage: %s; it %s after %.1f s; %s. %d generations were under way%s. "
            "The last lines of its log:\n%s",
            *(ending.cause, self._stage, "was killed by this server" if ours else exit_words(exit_status)),
            *(seconds, ending.text, len(running)),
            *(f": {shown}" if shown else "", "\n".join(last_lines) or "(none)"),
        )
