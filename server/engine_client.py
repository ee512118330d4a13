"""The front end's view of an engine: requests in, deltas out, and a process that is started, watched and restarted.

`EngineClient` is what the HTTP part takes as an argument; `ProcessEngineClient` is the one that runs
`python -m engine` on this machine. Knows token ids and processes, not chat; imports neither torch nor vLLM.

Exceptions that `generate` raises:
    EngineError
    ├── EngineUnavailable   loading, lost or closed: nothing is wrong with the request, 503
    └── RequestFailed       the engine refused this request: 400
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from engine import USER_ERROR
from engine.messages import (
    PROTOCOL_VERSION,
    Abort,
    Delta,
    Failed,
    FromEngine,
    Generate,
    Loading,
    Ready,
    Reload,
    Reloaded,
    Shutdown,
    Stats,
    Step,
    ToEngine,
    decode_from_engine,
)
from engine.transport import FrameBuffer, frame
from server.delta_stream import DeltaStream
from server.offload import LONG, without_gc

logger = logging.getLogger("twogear.engine")
"""Carries every line that the engine process writes."""

_GENTLE_SECONDS = 5.0
"""For a process that was asked to leave, or whose connection broke, before it is killed."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_STABLE_SECONDS = 60.0
"""An engine that served this long starts again after the first pause; one that keeps dying waits ever longer."""
_MOST_STARTS = 3
"""Attempts for an engine that was never ready."""


class EngineError(Exception):
    """Base of what `generate` raises."""


class EngineUnavailable(EngineError):  # noqa: N818 - reads as what it says
    """No engine takes requests now, or it died under this one."""


class RequestFailed(EngineError):  # noqa: N818
    """The engine refused this request; the message says why."""


class EngineStatus(NamedTuple):
    """`detail` in words for a person, `fraction` of the start that lies behind, from 0 to 1.

    `final`: the engine is lost for a reason that starting it again cannot cure, so it will not be.
    """

    state: Literal["loading", "ready", "lost", "closed"]
    detail: str
    fraction: float
    final: bool = False


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

    async def start(self) -> None:
        """Returns at once; the engine comes up in the background."""

    async def close(self) -> None:
        """Ends the engine; running requests fail with EngineUnavailable."""

    def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """Deltas of one request, the last with `finish`; leaving the iterator earlier aborts the request.

        Raises EngineUnavailable, also in the middle, RequestFailed, and ReaderBehind where deltas come faster than they
        are asked for, by so much that the request was aborted.
        """


class _EngineSocket(asyncio.Protocol):
    """The front end's end of the connection: whole messages up, and the news that the engine is gone."""

    def __init__(self, client: "ProcessEngineClient") -> None:
        self._client = client
        self._frames = FrameBuffer()

    def data_received(self, data: bytes) -> None:
        for payload in self._frames.feed(data):
            with without_gc() if len(payload) > LONG else nullcontext():
                message = decode_from_engine(payload)
            self._client.on_message(message)

    def connection_lost(
        self,
        exc: Exception | None,  # noqa: ARG002 - asyncio's signature
    ) -> None:
        self._client.on_connection_lost()


class ProcessEngineClient:
    """One engine process on this machine, started again with growing pauses when it dies.

    `engine_options` are vLLM's own; `environment` is added to this process's. A front end that ends without `close`
    takes the engine with it: the engine leaves when the connection breaks.
    """

    def __init__(
        self, model: str, engine_options: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._arguments = ["--model", model, "--", *engine_options]
        # Safe path: a folder called `server` where the user stands must not shadow ours.
        self._environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._status = EngineStatus("loading", "not started", 0.0)
        self._ready: Ready | None = None
        self._stats: Stats | None = None
        self._streams: dict[str, DeltaStream] = {}
        self._reloading: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._log_tail: deque[str] = deque(maxlen=20)
        self._failure = ""
        self._ended = asyncio.Event()
        self._ready_since: float | None = None

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
    def pid(self) -> int | None:
        """The engine process; None while there is none."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Returns at once; the engine comes up in the background."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def close(self) -> None:
        """Ends the engine, gently if it answers; running requests fail with EngineUnavailable."""
        self._set_status(EngineStatus("closed", "the engine is closed", 0.0))
        self._fail_streams("the server is shutting down")
        if self._supervisor is None:
            return
        if self._process is not None and self._transport is not None:
            if self._ready_since is not None:
                self._send(Shutdown())
            else:  # it does not read while it loads, but notices a closed connection
                self._transport.abort()
            await asyncio.wait([self._supervisor], timeout=_GENTLE_SECONDS)
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
                del self._streams[request.request_id]
                self._send(Abort(request.request_id))

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
        if error is None:
            self._reloading.set_result(None)
        else:
            self._reloading.set_exception(error)

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
        return stream

    def _send(self, message: ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def on_message(self, message: FromEngine) -> None:
        """Called by the connection for each message of the engine."""
        match message:
            case Step(deltas):
                for delta in deltas:
                    self._deliver(delta)
            case Stats():
                self._stats = message
            case Loading(stage, fraction):
                self._set_status(EngineStatus("loading", stage, fraction))
            case Ready():
                self._on_ready(message)
            case Reloaded(error):
                self._on_reloaded(None if error is None else RequestFailed(error))
            case Failed(text, None):
                self._failure = text
                self._ended.set()
            case Failed(text, request_id) if request_id in self._streams:
                self._streams.pop(request_id).fail(RequestFailed(text))

    def _deliver(self, delta: Delta) -> None:
        stream = self._streams.get(delta.request_id)
        if stream is None:  # aborted while the step ran
            return
        is_taken = stream.put(delta)
        if not is_taken:
            self._send(Abort(delta.request_id))
        if delta.finish is not None or not is_taken:
            del self._streams[delta.request_id]

    def _on_ready(self, message: Ready) -> None:
        if message.protocol != PROTOCOL_VERSION:
            self._failure = f"the engine speaks protocol {message.protocol}, this front end {PROTOCOL_VERSION}"
            self._ended.set()
            return
        self._ready = message
        for path in message.fast_paths:
            level = logging.WARNING if path.unexpected else logging.INFO
            logger.log(level, "%s: %s (%s)", path.name, "on" if path.on else "off", path.reason)
        self._ready_since = time.monotonic()
        self._set_status(EngineStatus("ready", message.model_class, 1.0))

    def on_connection_lost(self) -> None:
        """Called by the connection: usually the first sign that the process is dead."""
        detail = self._failure or "the engine died"
        if self._status.state == "ready":
            self._set_status(EngineStatus("lost", detail, 0.0))
        self._fail_streams(f"{detail}, while it worked on this request")
        self._transport = None
        self._stats = None
        self._ended.set()

    def _fail_streams(self, detail: str) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(EngineUnavailable(detail))
        self._on_reloaded(EngineUnavailable(detail))

    def _set_status(self, status: EngineStatus) -> None:
        if self._status.state != "closed":
            self._status = status

    async def _supervise(self) -> None:
        """Runs the engine again and again; ends when it is closed or cannot come up."""
        failures = 0
        while True:
            self._set_status(EngineStatus("loading", "starting the engine process", 0.0))
            exit_status = await self._run_process()
            if self._status.state == "closed":
                return
            detail = self._why(exit_status)
            failures = 1 if self._was_stable() else failures + 1
            if self._ready is None and (exit_status == USER_ERROR or failures == _MOST_STARTS):
                self._set_status(EngineStatus("lost", detail, 0.0, final=True))
                return
            pause = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
            self._set_status(EngineStatus("lost", f"{detail}; starting again in {pause:g} s", 0.0))
            await asyncio.sleep(pause)

    def _was_stable(self) -> bool:
        return self._ready_since is not None and time.monotonic() - self._ready_since > _STABLE_SECONDS

    async def _run_process(self) -> int:
        """One life of the engine process, from its start to its exit status (negative: the signal that ended it)."""
        self._failure = ""
        self._log_tail.clear()
        self._ended = asyncio.Event()
        self._ready_since = None
        ours, theirs = socket.socketpair()
        with theirs:
            process = self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "engine", "--socket-fd", str(theirs.fileno()), *self._arguments),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is the front end's; and workers can be ended as a group
            )
        log = asyncio.create_task(self._read_log(process))
        exited = asyncio.create_task(process.wait())
        ended = asyncio.create_task(self._ended.wait())
        transport = None
        try:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_unix_connection(lambda: _EngineSocket(self), sock=ours)
            self._transport = transport
            await asyncio.wait([exited, ended], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([exited], timeout=_GENTLE_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if transport is not None:
                transport.abort()
            ended.cancel()
            self._process = None
        await asyncio.wait([log], timeout=_GENTLE_SECONDS)
        log.cancel()
        return await exited

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        """Passes the engine's lines on, and keeps the last ones for error messages."""
        assert process.stdout is not None
        rest = b""
        while chunk := await process.stdout.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._log_tail.append(text)
                    logger.info("%s", text)

    def _why(self, exit_status: int) -> str:
        if self._failure:
            return self._failure
        stage = "" if self._ready_since is not None else f" while {self._status.detail}"
        if exit_status < 0:
            hint = " (out of memory?)" if exit_status == -signal.SIGKILL else ""
            return f"the engine was ended by {signal.Signals(-exit_status).name}{stage}{hint}"
        last = f": {self._log_tail[-1]}" if self._log_tail else ""
        return f"the engine ended with status {exit_status}{stage}{last}"
