"""Keeps an engine process running: starts it, watches it, tells the log why it ended, and starts it again.

Knows the engine's life. What is asked of the engine, and what comes of that, is the engine client's part.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple, Protocol

from engine import USER_ERROR
from engine.heap import return_free_memory
from engine.messages import (
    PROTOCOL_VERSION,
    Adapter,
    AdapterLoaded,
    Failed,
    FromEngine,
    Loading,
    Ready,
    Reloaded,
    Shutdown,
    Stats,
    Step,
    ToEngine,
)
from server.engine_adapters import EngineAdapters
from server.engine_client import Cause, EngineLost, EngineStatus, EngineUnavailable
from server.engine_connection import EngineConnection
from server.engine_process import GENTLE_SECONDS, EngineProcess, exit_words
from server.step_watch import TICK, LoadWatch, StepWatch

logger = logging.getLogger("twogear.engine")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_STABLE_SECONDS = 60.0
"""An engine that served this long starts again after the first pause; one that keeps dying waits ever longer."""
_MOST_STARTS = 3
"""Attempts for an engine that was never ready."""
_LONG_SILENCE = 1.0
"""Seconds, more than the engine lets pass between two reports: a step that takes longer is reported at its end."""
ONE = "The engine"
"""What the log calls the only one."""
_SHOWN_REQUESTS = 20
"""Ids that the log names of the requests that ran when the engine ended."""

OfRequests = Step | Failed | Reloaded
"""The messages that tell of requests, not of the engine's life."""


class Work(Protocol):
    """What an engine is asked for, and who gets what comes of it."""

    @property
    def running(self) -> Collection[str]:
        """The ids of the generations under way."""

    @property
    def prefilling_tokens(self) -> int:
        """Prompt tokens of those whose first token is awaited."""

    def take(self, message: OfRequests) -> None:
        """The engine sent this."""

    def fail(self, error: EngineUnavailable) -> None:
        """What is under way has ended so."""


class _Ending(NamedTuple):
    """Why an engine's life is over: `public` in words for clients, `text` with what only the log may have."""

    cause: Cause
    public: str
    text: str


class EngineSupervisor:
    """Runs `python -m engine` with `arguments`, again and again with growing pauses when it ends, and has it do `work`.

    It takes requests once it has the `adapters`; one that cannot be loaded ends the first start, and later only the
    requests for it.

    After `most_seconds` with work and without a step, or of a start without a sign of life, an engine counts as hung;
    usually its own steps say so earlier (`server.step_watch`). A front end that ends without `close` takes the engine
    with it: the engine leaves when the connection breaks. `losses` numbers the engine's ends; by `name` the log knows
    it.
    """

    def __init__(
        self,
        work: Work,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        adapters: Sequence[Adapter] = (),
        most_seconds: float,
        losses: Iterator[int] | None = None,
        name: str = ONE,
    ) -> None:
        self._work = work
        self._arguments = arguments
        self._environment = environment
        self._most_seconds = most_seconds
        self._name = name
        self.adapters = EngineAdapters(adapters, self.send)
        self._status = EngineStatus("loading", "not started", 0.0)
        self.ready: Ready | None = None
        """The last Ready message of an engine that took requests; kept while it restarts."""
        self.stats: Stats | None = None
        """The engine's last Stats message; None while it is down."""
        self.restarts: Counter[str] = Counter()
        """By cause, how often the engine ended and was started again."""
        self._process: EngineProcess | None = None
        self._connection: EngineConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._losses = count(1) if losses is None else losses
        self._is_final = False  # the first start failed on what starting again cannot cure
        self._lost_since: float | None = None
        self._begin_life()

    def _begin_life(self) -> None:
        """What belongs to one life of the engine."""
        self._stage = "starting the engine process"
        self._ending: _Ending | None = None
        self._running_at_end: frozenset[str] = frozenset()
        self._ended = asyncio.Event()
        self._told: Ready | None = None
        self._ready_since: float | None = None
        self._steps = StepWatch(self._most_seconds)
        self._owes_report = False  # of a step whose clients have left
        self._load = LoadWatch(self._most_seconds)

    @property
    def status(self) -> EngineStatus:
        """Where the engine is in its life."""
        return self._status

    @property
    def pid(self) -> int | None:
        """The engine process; None while there is none."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Returns at once; the engine comes up in the background."""
        self._task = asyncio.create_task(self._run(), name="engine supervisor")

    async def close(self) -> None:
        """Ends the engine, gently if it answers; its work fails with EngineUnavailable."""
        self._set_status(EngineStatus("closed", "the engine is closed", 0.0))
        self._fail(EngineUnavailable("the server is shutting down"))
        if self._task is None:
            return
        if self._process is not None and self._connection is not None:
            if self._ready_since is not None:
                self.send(Shutdown())
            else:  # it does not read while it loads, but notices a closed connection
                self._connection.abort()
            await asyncio.wait([self._task], timeout=GENTLE_SECONDS)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None

    def send(self, message: ToEngine) -> None:
        """Has the engine get a message, if there is one."""
        if self._connection is not None:
            self._connection.send(message)

    def await_report(self) -> None:
        """A generation is given up. If it is in a step, there is a report at the step's end, whoever still listens."""
        self._owes_report |= self._steps.silence >= _LONG_SILENCE

    def on_message(self, message: FromEngine) -> None:
        """Called by the connection. What comes after the engine's end is of no use."""
        if self._ending is not None:
            return
        self._owes_report = False
        match message:
            case Step():
                self._work.take(message)
                self._steps.sign(works=bool(self._work.running))
            case Stats():
                self.stats = message
            case Loading(stage, fraction):
                self._stage = stage
                self._load.sign()
                self._set_status(EngineStatus("loading", stage, fraction))
            case Ready():
                self._on_ready(message)
            case Failed(text, None):
                self._end(_Ending("error", "the engine failed", text))
            case AdapterLoaded():
                self._load.sign()
                self._on_adapter(message)
            case Failed() | Reloaded():
                self._work.take(message)

    def on_garbage(self, error: Exception) -> None:
        """Called by the connection for what is no message."""
        self._end(_Ending("protocol", "the engine failed", f"it sent what is no message: {error}"))

    def on_connection_lost(self) -> None:
        """Called by the connection: usually the first sign that the process is dead."""
        self._connection = None
        self._end(None)

    def _on_ready(self, message: Ready) -> None:
        if message.protocol != PROTOCOL_VERSION:
            text = f"the engine speaks protocol {message.protocol}, this front end {PROTOCOL_VERSION}"
            self._end(_Ending("protocol", text, text))
            return
        for path in message.fast_paths:
            level = logging.WARNING if path.unexpected else logging.INFO
            logger.log(level, "%s: %s (%s)", path.name, "on" if path.on else "off", path.reason)
        self._told = message
        self.adapters.begin()
        if self.adapters.is_complete:
            self._begin_serving(message)
        else:
            self._stage = "loading the adapters"
            self._set_status(EngineStatus("loading", self._stage, 1.0))

    def _on_adapter(self, message: AdapterLoaded) -> None:
        """Who starts the server wants to know of one that cannot be loaded; later, all other requests are served."""
        wrong = self.adapters.take(message)
        if wrong is not None and self.ready is None:
            self._is_final = True
            self._end(_Ending("error", wrong, wrong))
            return
        if wrong is not None:
            logger.error("%s; requests for it are refused", wrong)
        if self._told is not None and self._ready_since is None and self.adapters.is_complete:
            self._begin_serving(self._told)

    def _begin_serving(self, ready: Ready) -> None:
        self.ready = ready
        self._stage = "serving"
        self._ready_since = time.monotonic()
        return_free_memory()
        self._set_status(EngineStatus("ready", ready.model_class, 1.0))
        if self._lost_since is not None:
            logger.warning("%s is back, %.1f s after it was lost.", self._name, self._ready_since - self._lost_since)
            self._lost_since = None

    def _end(self, ending: _Ending | None) -> None:
        """This life of the engine is over; `ending` is None where only the exit status will tell why."""
        if self._ending is None:
            self._ending = ending
        public = "the engine died" if self._ending is None else self._ending.public
        if self._status.state == "ready":
            self._set_status(EngineStatus("lost", public, 0.0))
        if not self._ended.is_set():
            self._running_at_end = frozenset(self._work.running)
            self._fail(
                EngineLost(f"{public} while it worked on this request", next(self._losses), self._running_at_end)
            )
        self.stats = None
        self._ended.set()

    def _fail(self, error: EngineUnavailable) -> None:
        self._work.fail(error)
        self.adapters.fail(error)

    def _set_status(self, status: EngineStatus) -> None:
        if self._status.state != "closed":
            self._status = status

    async def _run(self) -> None:
        """Runs the engine again and again; ends when it is closed or cannot come up."""
        failures = 0
        while True:
            self._begin_life()
            self._set_status(EngineStatus("loading", self._stage, 0.0))
            try:
                exit_status, ending = await self._live()
            except OSError as error:  # no memory, process or file is left for it
                public = "the engine could not be started"
                exit_status, ending = None, _Ending("crash", public, f"{public}: {error}")
                logger.error("%s", ending.text)  # noqa: TRY400 - a line, no traceback
            if self._status.state == "closed":
                return
            failures = 1 if self._was_stable() else failures + 1
            if self.ready is None and (self._is_final or exit_status == USER_ERROR or failures == _MOST_STARTS):
                self._set_status(EngineStatus("lost", ending.public, 0.0, final=True, reason=ending.text))
                return
            self.restarts[ending.cause] += 1
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
        connection = None
        exit_status: int | None = None
        try:
            connection = self._connection = await EngineConnection.open(self, engine.socket)
            await asyncio.wait([engine.exited, ended], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([engine.exited, watch], timeout=GENTLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            ended.cancel()
            hung = self._ending is not None and self._ending.cause == "hang"
            last_lines = list(engine.last_lines) if hung else []
            if connection is not None:
                connection.abort()
                await connection.closed.wait()
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
        told = "\n".join(stacks) or "none came: it does not take signals"
        logger.error("Stacks of what hung (%s):\n%s", self._name[:1].lower() + self._name[1:], told)

    def _is_hung(self, engine: EngineProcess, seconds: float) -> bool:
        if self._ready_since is None:
            hung, watch = self._load.tick(seconds, engine.processor_time()), self._load
            text = f"no sign of life for {watch.silence:.0f} s while {self._stage}"
        else:
            running, due = len(self._work.running), self._work.prefilling_tokens
            hung = self._steps.tick(seconds, works=bool(running) or self._owes_report, due=due)
            text = f"no step for {self._steps.silence:.0f} s with {running} generations under way"
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
            "%s was lost. Cause: %s; stage: %s; it %s after %.1f s; %s. %d generations were under way%s. "
            "The last lines of its log:\n%s",
            *(self._name, ending.cause, self._stage, "was killed by this server" if ours else exit_words(exit_status)),
            *(seconds, ending.text, len(running)),
            *(f": {shown}" if shown else "", "\n".join(last_lines) or "(none)"),
        )
