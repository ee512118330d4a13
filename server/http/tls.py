"""TLS before HTTP: a connection counts, and has its time, from the first on and not only after its handshake.

The event loop's own way would count none of those that say nothing, and keep each for a minute.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.utils import get_remote_addr

from server.http.connections import Connections
from server.http.protocol import LINGER, Protocol


class Config(uvicorn.Config):
    """`connections`: those of the server. With a certificate, handshakes are ours and not the event loop's."""

    def __init__(self, app: Any, connections: Connections, **options: Any) -> None:
        super().__init__(app, **options)
        self._connections = connections

    def load(self) -> None:
        """Called by uvicorn."""
        super().load()
        context, protocol = self.ssl, self.http_protocol_class
        if context is None:
            return
        self.ssl = None
        limits = self._connections
        made: Any = lambda **options: _Handshake(lambda: protocol(**options), context, limits)  # noqa: E731
        self.http_protocol_class = made


class _Handshake(asyncio.Protocol):
    """A connection until its handshake is over; from then on it is one of `make`'s.

    What comes with the end of the handshake is kept for that one, which nobody has told of its connection yet.
    """

    _shaking: ClassVar[set[asyncio.Task[None]]] = set()

    def __init__(self, make: Callable[[], Protocol], context: ssl.SSLContext, limits: Connections) -> None:
        self._make = make
        self._context = context
        self._limits = limits
        self._early: list[bytes] = []
        self._is_lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio, for the connection without TLS; one too many is closed without a word."""
        address = get_remote_addr(transport)
        source = None if address is None else address[0]
        if not self._limits.open(source):
            self._limits.close(source)
            transport.abort()
            return
        transport.pause_reading()
        task = asyncio.get_running_loop().create_task(self._shake(transport, source))
        self._shaking.add(task)
        task.add_done_callback(self._shaking.discard)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio, with what came through TLS."""
        self._early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Called by asyncio."""
        self._is_lost = True

    async def _shake(self, transport: asyncio.Transport, source: str | None) -> None:
        loop, secured = asyncio.get_running_loop(), None
        try:
            with suppress(OSError):  # a failed handshake, or one that took too long, is no failure of ours
                secured = await loop.start_tls(
                    transport,
                    self,
                    self._context,
                    server_side=True,
                    ssl_handshake_timeout=self._limits.header_timeout,
                    ssl_shutdown_timeout=LINGER,
                )
        finally:
            self._limits.close(source)
            if secured is None:
                transport.abort()
        if secured is not None and not self._is_lost:
            protocol = self._make()
            secured.set_protocol(protocol)
            protocol.connection_made(secured)  # which counts it from now on
            for data in self._early:
                protocol.data_received(data)
