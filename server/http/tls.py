"""TLS before HTTP: a connection counts, and has its time, from the first on and not only after its handshake.

The event loop's own way would count none of those that say nothing, and keep each for a minute.
"""

import asyncio
import os
import socket
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
        context = self.ssl
        if context is None:
            return
        self.ssl = None
        protocol = type("ServersSecured", (_Secured,), {"limits": self._connections})
        made: Any = lambda **options: _Handshake(lambda: protocol(**options), context)  # noqa: E731
        self.http_protocol_class = made


class _Secured(Protocol):
    """A connection whose handshake is over."""

    is_secured = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        self.limits.close(_address_of(transport))  # which was counted before the handshake
        self.is_secured = True
        super().connection_made(transport)


class _Handshake(asyncio.Protocol):
    """A connection until its handshake is over; from then on it is that of the protocol that `make` makes."""

    _shaking: ClassVar[set[asyncio.Task[None]]] = set()

    def __init__(self, make: Callable[[], _Secured], context: ssl.SSLContext) -> None:
        self._make = make
        self._context = context

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio, for the connection without TLS. One too many is closed without a word."""
        protocol, address = self._make(), _address_of(transport)
        if not protocol.limits.open(address):
            protocol.limits.close(address)
            transport.abort()
            return
        try:  # The loop takes the connection over once more: what has come is still in the kernel.
            connection = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError:  # there is no file left
            protocol.limits.close(address)
            return
        finally:
            transport.abort()
        task = asyncio.get_running_loop().create_task(self._shake(connection, protocol, address))
        self._shaking.add(task)
        task.add_done_callback(self._shaking.discard)

    async def _shake(self, connection: socket.socket, protocol: _Secured, address: str | None) -> None:
        try:
            with suppress(OSError):  # a failed handshake, or one that took too long, is no failure of ours
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol,
                    connection,
                    ssl=self._context,
                    ssl_handshake_timeout=protocol.limits.header_timeout,
                    ssl_shutdown_timeout=LINGER,
                )
        finally:
            if not protocol.is_secured:
                protocol.limits.close(address)
                connection.close()


def _address_of(transport: asyncio.Transport) -> str | None:
    address = get_remote_addr(transport)
    return None if address is None else address[0]
