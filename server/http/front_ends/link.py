"""One end of the connection between a front end and the server behind it. Knows bytes and frames, not what they mean.

What is sent in one turn of the event loop goes out in one write, which costs as much for a thousand tokens as for one.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from engine.transport import FrameBuffer


class Link(asyncio.Protocol):
    """`take` gets each payload, `end` is called when the other end is gone."""

    def __init__(self, take: Callable[[bytes], None], end: Callable[[], None]) -> None:
        self._take = take
        self._end = end
        self._frames = FrameBuffer()
        self._waiting: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods alone

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        for payload in self._frames.feed(data):
            self._take(payload)

    def connection_lost(
        self,
        exc: Exception | None,  # noqa: ARG002 - asyncio's signature
    ) -> None:
        """Called by asyncio."""
        self._transport = None
        self._end()

    def send(self, framed: bytes) -> None:
        """Has the other end get it, if it is still there."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(framed)

    def close(self) -> None:
        """Sends what waits, and then that there is no more."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._waiting and self._transport is not None:
            self._transport.write(b"".join(self._waiting))
        self._waiting.clear()
