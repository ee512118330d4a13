"""The front end's end of the connection to an engine process: whole messages both ways, and the news of its end."""

import asyncio
import contextlib
import socket
from contextlib import nullcontext
from typing import Protocol, cast

import msgspec

from engine.messages import FromEngine, ToEngine, decode_from_engine
from engine.transport import FrameBuffer, frame
from server.offload import LONG, without_gc


class Receiver(Protocol):
    """Who is told what comes over a connection."""

    def on_message(self, message: FromEngine) -> None:
        """The engine sent this."""

    def on_garbage(self, error: Exception) -> None:
        """The engine sent what is no message."""

    def on_connection_lost(self) -> None:
        """Nothing comes any more: usually the first sign that the process is dead."""


class EngineConnection(asyncio.Protocol):
    """A connection that is open until `receiver` is told otherwise."""

    def __init__(self, receiver: Receiver, sock: socket.socket) -> None:
        self.closed = asyncio.Event()
        """Set once it is."""
        self._receiver = receiver
        self._frames = FrameBuffer()
        self._rest = sock.dup()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, receiver: Receiver, sock: socket.socket) -> "EngineConnection":
        """One over `sock`."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(lambda: cls(receiver, sock), sock=sock)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods alone

    def send(self, message: ToEngine) -> None:
        """Has the engine get a message, if it is still there."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def abort(self) -> None:
        """Closes it at once; the engine notices."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            for payload in self._frames.feed(data):
                with without_gc() if len(payload) > LONG else nullcontext():
                    message = decode_from_engine(payload)
                self._receiver.on_message(message)
        except msgspec.MsgspecError as error:
            self._receiver.on_garbage(error)

    def connection_lost(
        self,
        exc: Exception | None,  # noqa: ARG002 - asyncio's signature
    ) -> None:
        """Called by asyncio."""
        self._drain()
        self._transport = None
        self._receiver.on_connection_lost()
        self.closed.set()

    def _drain(self) -> None:
        """Takes what the engine sent before its end: a write that failed ends asyncio's reading at once."""
        with self._rest, contextlib.suppress(OSError):
            while data := self._rest.recv(1 << 18, socket.MSG_DONTWAIT):
                self.data_received(data)
