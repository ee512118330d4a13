"""Server-sent events over ASGI, and work that ends when its client leaves. Knows nothing of chat."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar

import orjson
from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from server.errors import ApiError
from server.http.responses import error_response

T = TypeVar("T")

CONNECTION = "twogear.connection"
"""The ASGI extension that holds a Connection, under its own name."""
LOOKS = 4  # at a stream within the time that a client may stall
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events
]


class Connection(Protocol):
    """What a stream has to know of its connection, and may do to it."""

    def unread(self) -> int:
        """How many bytes were sent that the client has not read, as far as is known here."""
        ...

    def abort(self) -> None:
        """Ends it at once; what is unread is lost."""
        ...


def encode_event(body: object, name: str = "") -> bytes:
    """One event; with a `name` where the API names its events."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(body) + b"\n\n"


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None when the client left first, in which case the work was cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for unfinished in (one for one in (task, gone) if not one.done()):
            unfinished.cancel()
            with suppress(asyncio.CancelledError):
                await unfinished


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends the events of a generator, and closes it when the client leaves, or has read nothing for `stall_seconds`
    of the app's state while events wait for it.

    The response starts with the first event, so that an ApiError raised before it is an ordinary error response, in
    its API's shape.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the response."""
        connection = scope.get("extensions", {}).get(CONNECTION, {}).get(CONNECTION)
        if connection is None:
            await until_disconnect(receive, self._send_all(scope, receive, send))
            return
        with _Watched(send, connection, scope["app"].state.stall_seconds) as watched:
            await until_disconnect(receive, self._send_all(scope, receive, watched.send))

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            try:
                first = await anext(self._events)
            except ApiError as error:
                await error_response(error, scope)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            async for body in self._events:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Watched:
    """`send`, and the end of the connection where a message waits and the client has read nothing for `seconds`."""

    def __init__(self, send: Send, connection: Connection, seconds: float) -> None:
        self._send = send
        self._connection = connection
        self._seconds = seconds
        self._is_sending = False
        self._unread = 0
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()

    def __enter__(self) -> "_Watched":
        self._next = self._loop.call_later(self._seconds / LOOKS, self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._next.cancel()

    async def send(self, message: Message) -> None:
        """Sends one message."""
        self._is_sending = True
        await self._send(message)
        self._is_sending = False

    def _look(self) -> None:
        """While a message waits nothing is added to what is unread, so that any change of it is the client's doing."""
        unread, now = self._connection.unread(), self._loop.time()
        if not self._is_sending or unread != self._unread:
            self._unread, self._moved = unread, now
        elif now - self._moved >= self._seconds:
            self._connection.abort()
            return
        self._next = self._loop.call_later(self._seconds / LOOKS, self._look)
