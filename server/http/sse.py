"""Server-sent events over ASGI, and work that ends when its client leaves. Knows nothing of chat."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

from server.errors import ApiError
from server.http.responses import error_response
from server.telemetry.record import SEND_KEY

T = TypeVar("T")

LINE_ENDS = {"\u0085".encode(): b"\\u0085", "\u2028".encode(): b"\\u2028", "\u2029".encode(): b"\\u2029"}
"""From each character beyond ASCII at which Python's `str.splitlines` splits to its escape in JSON."""
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events
]


def encode_event(body: object, name: str = "") -> bytes:
    """One event; with a `name` where the API names its events."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + encode_json(body) + b"\n\n"


def encode_json(body: object) -> bytes:
    """JSON on one line also for clients that take more characters than HTML's standard does for the end of one."""
    data = orjson.dumps(body)
    if not data.isascii():
        for character, escape in LINE_ENDS.items():
            data = data.replace(character, escape)
    return data


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
    """Sends the events of a generator, and closes it when the client leaves.

    The response starts with the first event, so that an ApiError raised before it is an ordinary error response, in
    its API's shape.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the response."""
        await until_disconnect(receive, self._send_all(scope, receive, send))

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            try:
                first = await anext(self._events)
            except ApiError as error:
                await error_response(error, scope)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            send = scope.get(SEND_KEY, send)  # the layers between have seen what they look at
            await send({"type": "http.response.body", "body": first, "more_body": True})
            async for body in self._events:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
