"""What the front end needs from an engine: requests in, deltas out. The app takes an engine client as an argument.

`server.process_engine_client` is the one that runs an engine process on this machine; tests have one that plays a
script. Knows token ids, not chat.

Exceptions that `generate` raises; the texts of EngineErrors may be told to clients, and hold nothing of the engine's
inside:
    EngineError
    ├── EngineUnavailable   loading or closed: nothing is wrong with the request, 503
    │   └── EngineLost      the engine ended while it worked on the request: 503
    └── RequestFailed       the engine refused this request: 400
        └── RequestBroke    a step failed on this request, and on it alone
    ReaderBehind            the request was aborted since its deltas were not read, or not as fast as they came
"""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from engine.messages import Adapter, Delta, Generate, Ready, Stats

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


class ReaderBehind(Exception):  # noqa: N818 - reads as what it says
    """The request was aborted since its reader stays away, or so much waits for it. What came before has been read."""


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


class Deltas(Protocol):
    """What the engine generates for one request, as an asynchronous generator of it would be used."""

    def __aiter__(self) -> AsyncIterator[Delta]:
        """Itself."""

    def __anext__(self) -> Awaitable[Delta]:
        """The next delta. Raises StopAsyncIteration after the last, and what `generate` says."""

    def aclose(self) -> Awaitable[None]:
        """No more are wanted."""


class EngineClient(Protocol):
    """What the front end needs from an engine."""

    @property
    def replicas(self) -> "Sequence[EngineClient]":
        """The engines behind it; itself, where it is one."""

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

    def generate(self, request: Generate, kind: str = "") -> Deltas:
        """Deltas of one request, the last with `finish`; closing them earlier aborts the request.

        Those of one `kind`, as of one mode, are about as long as each other; where there are several engines, that
        helps to choose one.

        Raises EngineUnavailable, also in the middle, RequestFailed, and ReaderBehind after `abort`, and where deltas
        come faster than they are asked for, by so much that the request was aborted.
        """

    def is_running(self, request_id: str) -> bool:
        """Whether the engine works on a request. Where it does not any more, some deltas may still be unread."""

    def abort(self, request_id: str) -> None:
        """Ends a request that runs. Its reader gets what has come, and then ReaderBehind."""

    def prioritize(self, request_id: str, priority: int) -> None:
        """Gives a request that runs another priority: where pages run out, the higher loses its own first."""

    async def load_adapter(self, adapter: Adapter) -> None:
        """Has the engine load a LoRA adapter, and again whenever it is started anew.

        Raises EngineUnavailable, and RequestFailed where it cannot be loaded.
        """

    def unload_adapter(self, adapter_id: int) -> None:
        """Has the engine forget an adapter; what runs with it goes on."""
