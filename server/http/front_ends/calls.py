"""The server's end: runs the app for each request that a front end hands over, as uvicorn would.

The app is not told that its client is elsewhere: it waits where the client does not read on, and learns that it left.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial

from starlette.types import ASGIApp, Message, Scope

from server.http.front_ends.link import Link
from server.http.front_ends.messages import (
    WINDOW,
    Body,
    Broken,
    Call,
    Headers,
    Left,
    Part,
    Start,
    ToFrontEnd,
    Took,
    Want,
    decode_from_front_end,
    frame,
)

logger = logging.getLogger("twogear.server")

GONE: Message = {"type": "http.disconnect"}


class Calls:
    """The requests of the front end with the process id `pid` that `app` answers; each answer has `headers` beside its
    own.
    """

    def __init__(self, app: ASGIApp, headers: Headers, pid: int) -> None:
        self.pid = pid
        self.taken = 0
        """How many there were."""
        self.link = Link(self._take, self._lost)
        self.lost = asyncio.Event()
        """Set once the front end is gone."""
        self._app = app
        self._headers = headers
        self._running: dict[int, Answering] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def over(self, seconds: float) -> None:
        """Waits so long for what runs to end, then cancels it."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()

    def send(self, message: ToFrontEnd) -> None:
        """To the front end."""
        self.link.send(frame(message))

    def _take(self, payload: bytes) -> None:
        message = decode_from_front_end(payload)
        if isinstance(message, Call):
            self._begin(message)
        elif (answering := self._running.get(message.call)) is not None:  # it may have ended meanwhile
            answering.take(message)

    def _begin(self, call: Call) -> None:
        self.taken += 1
        answering = self._running[call.call] = Answering(call, self.send, self._headers)
        task = asyncio.create_task(self._run(scope_of(call), answering))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, answering))

    async def _run(self, scope: Scope, answering: "Answering") -> None:
        await self._app(scope, answering.receive, answering.send)

    def _ended(self, answering: "Answering", task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        del self._running[answering.call]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("the app failed on a request", exc_info=error)
        answering.end()

    def _lost(self) -> None:
        for answering in self._running.values():
            answering.take(Left(answering.call))
        self.lost.set()


class Answering:
    """One request: `receive` and `send` are what its app is called with. What is to be sent is given to `pass_on`."""

    def __init__(self, call: Call, pass_on: Callable[[ToFrontEnd], None], headers: Headers) -> None:
        self.call = call.call
        self._pass_on = pass_on
        self._headers = headers
        self._asks = call.asks
        self._parts: deque[Body] = deque()
        self._is_over = False
        self._on_its_way = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    def take(self, message: Body | Left | Took) -> None:
        """Something came for it."""
        match message:
            case Body():
                self._parts.append(message)
                self._news.set()
            case Took(_, size):
                self._on_its_way -= size
                self._room.set()
            case Left():
                self._finish()

    async def receive(self) -> Message:
        """The next part of the body; once the client has left or has its answer, that."""
        while not self._is_over and not self._parts:
            if self._asks:
                self._asks = False
                self._pass_on(Want(self.call))
            self._news.clear()
            await self._news.wait()
        if self._is_over:
            return GONE
        body = self._parts.popleft()
        self._asks = body.more
        return {"type": "http.request", "body": body.part, "more_body": body.more}

    async def send(self, message: Message) -> None:
        """Passes it on as soon as the client has taken enough of what came before; to nobody where it left."""
        while self._on_its_way > WINDOW and not self._is_over:
            self._room.clear()
            await self._room.wait()
        if self._is_over:
            return
        if message["type"] == "http.response.start":
            self._pass_on(Start(self.call, message["status"], [*message.get("headers", ()), *self._headers]))
            return
        part, more = message.get("body", b""), message.get("more_body", False)
        self._on_its_way += len(part)
        self._pass_on(Part(self.call, part, more))
        if not more:
            self._finish()

    def end(self) -> None:
        """The app is done with it."""
        if not self._is_over:
            self._pass_on(Broken(self.call))
            self._finish()

    def _finish(self) -> None:
        self._is_over = True
        self._news.set()
        self._room.set()


def scope_of(call: Call) -> Scope:
    """ASGI's, as uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": call.http_version,
        "method": call.method,
        "scheme": call.scheme,
        "path": call.path,
        "raw_path": call.raw_path,
        "query_string": call.query_string,
        "root_path": call.root_path,
        "headers": call.headers,
        "client": call.client,
        "server": call.server,
        "state": {},
    }
