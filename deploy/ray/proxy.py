"""From a replica to its child: an ASGI app that hands requests on over HTTP, and answers as they come.

- An answer of the child that it does not know an id (a stored response, a request that runs) is not told: the other
  replicas are asked first, one after the other.
- When the child ends, streams end with an error event, and other requests with a 503.
- What requests draw is told to the router of the fleet, by the ticket in their head.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, MutableMapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from deploy.ray.fleet import Told

TICKET = b"x-serve-router-ticket"
"""Ray takes headers that begin like this from clients, and sets them as the router says."""
ASKED = b"x-twogear-asked-of"
"""The header of a request that came from another replica: it is not handed on again."""
MOST_BODY = 64 * 1024 * 1024
CONNECT_SECONDS = 5.0
PIECE = 65_536
EVENT_END = b"\n\n"
LOST = "The engine of this replica ended while the request ran. Send it again."
UNKNOWN = frozenset({"request_not_found", "response_not_found", "previous_response_not_found"})
_NAMES_ONE = re.compile(r"/v1/(chat/completions|completions|messages|responses)/[a-z]+[-_][0-9a-f]{8,}")
_TOKENS = re.compile(rb'"(?:completion_tokens|output_tokens)": ?(\d+)')
_PATH = "/:@!$&'()*+,;=~-._"
_OF_BODY = frozenset({b"content-length", b"expect"})
_OF_RAY = frozenset({b"date", b"server", b"x-request-id"})
"""Headers of a response that Ray adds itself, the last with what HAProxy chose."""
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade".split()
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class ClientGoneError(Exception):
    """The client left before its request was whole."""


class Ledger:
    """What requests have drawn since it was last taken, by their tickets."""

    def __init__(self) -> None:
        self._told: dict[str, Told] = {}

    def note(self, ticket: str, tokens: int, over: bool | None = None) -> None:
        """More tokens of a request, or its end. Without a ticket nothing is noted."""
        if ticket:
            before = self._told.get(ticket, Told())
            self._told[ticket] = Told(before.tokens + tokens, over)

    def take(self) -> dict[str, Told]:
        """All that was noted; it is forgotten."""
        told, self._told = self._told, {}
        return told


@dataclass
class Exchange:
    """One request and the way back to its client."""

    method: str
    path: str
    headers: Headers
    body: bytes
    send: Send
    ticket: str = ""
    is_begun: bool = False
    is_stream: bool = False
    drawn: int = 0
    status: int = 0

    @property
    def is_from_peer(self) -> bool:
        """Whether another replica asks."""
        return any(name == ASKED for name, _ in self.headers)


@dataclass(eq=False)
class Proxy:
    """`child`: its URL. `peers`: those of the other replicas, when they are needed. `is_lost`: the child has ended."""

    child: str
    peers: Callable[[], Awaitable[Sequence[str]]]
    on_end: Callable[[], Awaitable[None]]
    ledger: Ledger = field(default_factory=Ledger)
    is_lost: bool = False
    running: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request, or the app's own start and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            self.running += 1
            try:
                await self._serve(scope, receive, send)
            finally:
                self.running -= 1

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout, connector=connector) as self._session:
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self.on_end()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            exchange = await _read(scope, receive, send)
        except ClientGoneError:
            return
        if exchange is None:
            await _tell(send, 413, f"The request body is larger than {MOST_BODY} bytes.", scope["path"])
            return
        self.ledger.note(exchange.ticket, 0)
        is_whole = False
        try:
            is_answered = await _until_gone(receive, self._answer(exchange))
            is_whole = is_answered and exchange.status == 200 and exchange.drawn > 0
        except (aiohttp.ClientError, ConnectionError) as error:
            await self._break(exchange, error)
        finally:  # also where Ray cancels this, as it does when the client leaves
            self.ledger.note(exchange.ticket, 0, over=is_whole)

    async def _answer(self, exchange: Exchange) -> None:
        async with AsyncExitStack() as stack:
            if self.is_lost:
                raise aiohttp.ClientConnectionError(LOST)
            response = await stack.enter_async_context(self._ask(self.child, exchange, exchange.headers))
            if exchange.is_from_peer or not _may_be_elsewhere(exchange, response.status):
                await self._hand_on(exchange, response, b"")
                return
            miss = await response.read()
            if not _is_miss(response.status, miss):
                await self._hand_on(exchange, response, miss)
                return
            await self._hand_on(exchange, *(await self._elsewhere(exchange, stack) or (response, miss)))

    async def _elsewhere(
        self, exchange: Exchange, stack: AsyncExitStack
    ) -> tuple[aiohttp.ClientResponse, bytes] | None:
        """The answer of the replica that knows what is asked for, if any, and what was read of its body."""
        headers = [(name, value) for name, value in exchange.headers if name != TICKET]
        for peer in await self.peers():
            try:
                response = await stack.enter_async_context(self._ask(peer, exchange, [*headers, (ASKED, b"1")]))
                if not _may_be_elsewhere(exchange, response.status):
                    return response, b""
                miss = await response.read()
                if not _is_miss(response.status, miss):
                    return response, miss
            except aiohttp.ClientError:  # one that has just ended knows nothing
                continue
        return None

    def _ask(self, base: str, exchange: Exchange, headers: Headers) -> Any:
        sent = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in _end_to_end(headers)
            if name not in _OF_BODY
        ]
        return self._session.request(
            exchange.method,
            URL(base + exchange.path, encoded=True),
            headers=sent,
            data=exchange.body or None,
            skip_auto_headers=_NOT_ADDED,
            allow_redirects=False,
        )

    async def _hand_on(self, exchange: Exchange, response: aiohttp.ClientResponse, read: bytes) -> None:
        exchange.status = response.status
        exchange.is_stream = response.content_type == "text/event-stream"
        headers = [(name.lower(), value) for name, value in _end_to_end(response.raw_headers)]
        headers = [(name, value) for name, value in headers if name not in _OF_RAY]
        await exchange.send({"type": "http.response.start", "status": response.status, "headers": headers})
        exchange.is_begun = True
        async for piece in _pieces(response, read, whole_events=exchange.is_stream):
            self._count(exchange, piece)
            await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
        await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _count(self, exchange: Exchange, piece: bytes) -> None:
        """A stream's event is a token, about; where the usage is told, it is what counts."""
        told = _TOKENS.findall(piece)
        drawn = exchange.drawn + piece.count(EVENT_END) if exchange.is_stream else 0
        if told:
            drawn = max(exchange.drawn, int(told[-1]))
        if drawn > exchange.drawn:
            self.ledger.note(exchange.ticket, drawn - exchange.drawn)
            exchange.drawn = drawn

    async def _break(self, exchange: Exchange, error: Exception) -> None:
        """The child, or another replica, ended the connection."""
        exchange.status = 503
        if not exchange.is_begun:
            await _tell(exchange.send, 503, LOST, exchange.path)
        elif exchange.is_stream:
            event = _error_event(LOST, exchange.path)
            await exchange.send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            raise error  # Ray cuts the connection, which tells the client that the answer is not whole


async def _read(scope: Scope, receive: Receive, send: Send) -> Exchange | None:
    """The whole request; None where its body is too large. Raises ClientGoneError."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            return None
        if not message.get("more_body", False):
            break
    headers: Headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
    query = scope.get("query_string", b"").decode("latin-1")
    ticket = next((value.decode("latin-1") for name, value in headers if name == TICKET), "")
    path = quote(scope["path"], safe=_PATH) + (f"?{query}" if query else "")
    return Exchange(scope["method"], path, headers, bytes(body), send, ticket)


async def _until_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` was done; where the client left before, it is cancelled."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        for unfinished in (one for one in (working, gone) if not one.done()):
            unfinished.cancel()
            with suppress(asyncio.CancelledError):
                await unfinished


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pieces(response: aiohttp.ClientResponse, read: bytes, *, whole_events: bool) -> AsyncIterator[bytes]:
    """Of the body, after what was `read` of it. Events come whole, so that another can follow where it breaks off."""
    held = read
    async for piece in response.content.iter_any():
        if not whole_events:
            yield held + piece
            held = b""
            continue
        held += piece
        end = held.rfind(EVENT_END) + len(EVENT_END)
        if end >= len(EVENT_END):
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Those that are not of a single connection. The length of a body is told anew for each."""
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]


def _may_be_elsewhere(exchange: Exchange, status: int) -> bool:
    is_named = _NAMES_ONE.match(exchange.path) is not None
    return (status == 404 and is_named) or (status in (400, 404) and exchange.path.startswith("/v1/responses"))


def _is_miss(status: int, body: bytes) -> bool:
    """Whether an answer says that an id is unknown; Anthropic's API has no code for it."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    if not isinstance(error, dict):
        return False
    return error.get("code") in UNKNOWN or (status == 404 and error.get("type") == "not_found_error")


def _error_of(message: str, kind: str, path: str) -> dict[str, Any]:
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": "api_error", "message": message}}
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _error_event(message: str, path: str) -> bytes:
    if path.startswith("/v1/responses"):
        body: dict[str, Any] = {"type": "error", "code": "server_error", "message": message, "param": None}
        return b"event: error\ndata: " + json.dumps(body).encode() + EVENT_END
    head = b"event: error\n" if path.startswith("/v1/messages") else b""
    return head + b"data: " + json.dumps(_error_of(message, "server_error", path)).encode() + EVENT_END


async def _tell(send: Send, status: int, message: str, path: str) -> None:
    kind = "service_unavailable_error" if status == 503 else "invalid_request_error"
    body = json.dumps(_error_of(message, kind, path)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def settled(proxy: Proxy, seconds: float) -> None:
    """Waits until no request runs in it, for `seconds` at most."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while proxy.running and loop.time() < until:  # noqa: ASYNC110 - once, at the end of the process
        await asyncio.sleep(0.01)
