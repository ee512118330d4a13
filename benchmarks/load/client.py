"""A very cheap HTTP client: one POST on a connection of its own, whose response is passed on as it comes.

Where the load and the server share the cores, the client takes its CPU time from the server. httpx would take six to
eight times as much for each event (docs/performance.md). All servers are sent the same, and read in the same way.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from functools import cache
from urllib.parse import urlsplit

import httptools
import httpx

from server.access.keys import client_headers

OnBody = Callable[[bytes, float], None]
"""Called with a piece of the body and the moment (perf_counter) at which it came."""


class HttpError(Exception):
    """The response is not complete, or its status is not 200; the message says which."""


async def post(url: str, body: bytes, on_body: OnBody) -> None:
    """Posts JSON, with the environment's API key, and returns when the response is complete. Raises HttpError."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    loop = asyncio.get_running_loop()
    try:
        transport, exchange = await loop.create_connection(
            lambda: _Exchange(loop.create_future(), on_body),
            parts.hostname,
            parts.port or (443 if parts.scheme == "https" else 80),
            ssl=_tls() if parts.scheme == "https" else None,
        )
    except OSError as error:
        raise HttpError(f"no connection: {error}") from error
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    )
    head += "".join(f"{name}: {value}\r\n" for name, value in client_headers().items()) + "\r\n"
    try:
        transport.write(head.encode() + body)
        await exchange.done
    finally:
        transport.abort()


@cache
def _tls() -> ssl.SSLContext:
    """As the other clients here have it: SSL_CERT_FILE names the authority of a server of one's own."""
    return httpx.create_ssl_context()


class _Exchange(asyncio.Protocol):
    """One response on its way in; its `on_...` methods are httptools' callbacks."""

    def __init__(self, done: asyncio.Future[None], on_body: OnBody) -> None:
        self.done = done
        self._pass_on = on_body
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0
        self._refusal = b""

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost{'' if exc is None else f': {exc}'}")

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() == 200:
            self._pass_on(body, self._now)
        else:
            self._refusal += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._fail(f"status {status}: {self._refusal[:300].decode(errors='replace')}")
        elif not self.done.done():
            self.done.set_result(None)

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(HttpError(why))
