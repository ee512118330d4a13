"""The process of one front end: takes connections on its part of the port, and hands their requests over.

It ends when the server behind it closes their connection, or is gone.
"""

import argparse
import asyncio
import gc
import logging
import signal
import socket
from collections import deque
from collections.abc import Iterator
from itertools import count
from types import FrameType
from typing import Any

import orjson
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from server.errors import error_body
from server.http.config import server_config
from server.http.front_ends.link import Link
from server.http.front_ends.messages import (
    WINDOW,
    Body,
    Broken,
    Call,
    FromFrontEnd,
    Left,
    Part,
    Start,
    ToFrontEnd,
    Took,
    Want,
    decode_settings,
    decode_to_front_end,
    frame,
)

TAKEN = WINDOW // 8
"""Bytes that the client took before the server behind is told."""
NOBODY: Message = {"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"application/json")]}


def main() -> None:
    """Serves until the connection ends."""
    parser = argparse.ArgumentParser(prog="python -m server.http.front_ends")
    parser.add_argument("--link-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # signals are for the server behind it
    link, listener = socket.socket(fileno=arguments.link_fd), socket.socket(fileno=arguments.listen_fd)
    with asyncio.Runner(loop_factory=uvicorn.Config(_nothing).get_loop_factory()) as runner:
        runner.run(serve(link, listener))


async def serve(link: socket.socket, listener: socket.socket) -> None:
    """With the settings that come first over `link`."""
    forwarding = Forwarding()
    await asyncio.get_running_loop().create_unix_connection(lambda: forwarding.link, sock=link)
    settings = await forwarding.settings
    logging.basicConfig(level=logging.INFO if settings.verbose else logging.WARNING)
    server = FrontEnd(server_config(forwarding, settings, lifespan="off"), forwarding)
    gc.freeze()
    await server.serve(sockets=[listener])
    forwarding.link.close()


class FrontEnd(uvicorn.Server):
    """Ends with its connection to the server behind it, and not by a signal."""

    def __init__(self, config: uvicorn.Config, forwarding: "Forwarding") -> None:
        super().__init__(config)
        self._forwarding = forwarding

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for each signal: they go to the whole group of processes, and are the server's."""

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; whether to exit."""
        return self._forwarding.is_lost or await super().on_tick(counter)


class Forwarding:
    """An ASGI app: whatever comes goes over its `link`. `settings`: what came first."""

    def __init__(self) -> None:
        self.link = Link(self._take, self._lost)
        self.settings = asyncio.get_running_loop().create_future()
        self.is_lost = False
        self._numbers = count()
        self._under_way: dict[int, _Exchange] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        number = next(self._numbers)
        exchange = self._under_way[number] = _Exchange(number, self)
        if self.is_lost:
            exchange.close()
        self.send(_call(number, scope))
        reading = asyncio.create_task(exchange.read(receive, asks=_asks(scope)))
        try:
            await exchange.write(send)
        finally:
            reading.cancel()
            del self._under_way[number]

    def send(self, message: FromFrontEnd) -> None:
        """To the server behind it."""
        self.link.send(frame(message))

    def _take(self, payload: bytes) -> None:
        if not self.settings.done():
            self.settings.set_result(decode_settings(payload))
            return
        message = decode_to_front_end(payload)
        exchange = self._under_way.get(message.call)
        if exchange is not None:
            exchange.take(message)

    def _lost(self) -> None:
        self.is_lost = True
        for exchange in self._under_way.values():
            exchange.close()
        if not self.settings.done():
            self.settings.cancel()


class _Exchange:
    """One request that is handed over, and its answer."""

    def __init__(self, number: int, forwarding: Forwarding) -> None:
        self._number = number
        self._forwarding = forwarding
        self._came: deque[Start | Part | Broken] = deque()
        self._news = asyncio.Event()
        self._wanted = asyncio.Event()
        self._taken = 0
        self._has_left = False
        self._is_closed = False

    def take(self, message: ToFrontEnd) -> None:
        """Something came for it."""
        if isinstance(message, Want):
            self._wanted.set()
        else:
            self._came.append(message)
            self._news.set()

    def close(self) -> None:
        """Nothing comes any more."""
        self._is_closed = True
        self._news.set()

    async def read(self, receive: Receive, *, asks: bool) -> None:
        """Hands the body over, each part when it is wanted, and tells when the client leaves."""
        while True:
            if asks:
                await self._wanted.wait()
                self._wanted.clear()
            message = await receive()
            if message["type"] == "http.disconnect":
                self._has_left = True
                self._news.set()
                self._forwarding.send(Left(self._number))
                return
            asks = message["more_body"]
            self._forwarding.send(Body(self._number, message["body"], asks))

    async def write(self, send: Send) -> None:
        """The answer, to its end. Raises ConnectionError where it is not whole."""
        has_begun = False
        while True:
            while not (self._came or self._has_left or self._is_closed):
                self._news.clear()
                await self._news.wait()
            if self._has_left:
                return
            if not self._came and not has_begun:
                await _send_nobody(send)
                return
            for message in self._messages():
                await send(message)
                has_begun = True
                if message["type"] == "http.response.body":
                    if not message["more_body"]:
                        return
                    self._tell_taken(len(message["body"]))

    def _tell_taken(self, size: int) -> None:
        """Not after every token."""
        self._taken += size
        if self._taken >= TAKEN:
            self._forwarding.send(Took(self._number, self._taken))
            self._taken = 0

    def _messages(self) -> Iterator[Message]:
        """What has come, as ASGI's; parts that came together as one. Raises ConnectionError where there is no more."""
        if not self._came:
            raise ConnectionError("the server behind this front end is gone")
        while self._came:
            first = self._came.popleft()
            match first:
                case Start():
                    yield {"type": "http.response.start", "status": first.status, "headers": first.headers}
                case Broken():
                    raise ConnectionError("the answer broke off")
                case Part():
                    parts, more = [first.part], first.more
                    while self._came and isinstance(following := self._came[0], Part):
                        self._came.popleft()
                        parts.append(following.part)
                        more = following.more
                    yield {"type": "http.response.body", "body": b"".join(parts), "more_body": more}


def _call(number: int, scope: Scope) -> Call:
    return Call(
        number,
        scope["method"],
        scope["path"],
        scope["raw_path"],
        scope["query_string"],
        scope["headers"],
        scope["client"],
        scope["server"],
        scope["scheme"],
        scope["http_version"],
        scope["root_path"],
        _asks(scope),
    )


def _asks(scope: Scope) -> bool:
    """Whether the client waits to be told that its body is wanted."""
    return any(name == b"expect" for name, _ in scope["headers"])


async def _send_nobody(send: Send) -> None:
    await send(NOBODY)
    body = error_body("The server is gone. Try again.", "server_error")
    await send({"type": "http.response.body", "body": orjson.dumps(body)})


async def _nothing(*_: Any) -> None:
    """No app: of its config, only the event loop is asked for."""
