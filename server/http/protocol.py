"""HTTP as uvicorn speaks it, with errors in our shape for what is no HTTP, and limits of size, time and number.

A client has so long to send a request's head and its body, and to read on in its answer. An idle connection is closed
after a while, and there may be so many in all (`connections`). Everything after the head is the app's part.
"""

import asyncio
import fcntl
import socket
import sys
import termios
from contextlib import suppress
from http import HTTPStatus
from typing import ClassVar, Literal

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from server.errors import error_body
from server.http.connections import LEAST_RATE, Connections
from server.telemetry.record import new_request_id

MAX_HEAD = 65_536  # bytes of request line and headers, as in uvicorn's other implementation
MAX_HEADERS = 256
MAX_AHEAD = 16  # requests that a client sends before it has the answer to the first
FRAMING = 8  # bytes around a body, for each of its own, beside MAX_HEAD: what small chunks take
UNSENT = 131_072  # bytes that the kernel keeps of a connection before it sends them
LOOKS = 4  # at a client within the time that it may leave its answer unread
LINGER = 2.0  # seconds for a client to end what nobody reads any more, and to read its answer

Awaited = Literal["head", "body", "end"]
"""Of a request: "end" is that of a body which was not wanted."""


class Protocol(HttpToolsProtocol):
    """One connection. `limits`: its server's, all of whose protocols are of one class (`protocol_of`).

    Sizes are looked at once for each piece that comes in. There is a timer only while something is awaited: a request
    that comes in one piece needs none.
    """

    limits: ClassVar[Connections]

    _is_in_head = False
    _is_in_body = False
    _beside = 0  # bytes of what is coming in that are not a body's
    _body = 0  # bytes of the body that is coming in
    _awaited: Awaited | None = None
    _since = 0.0  # on the loop's clock
    _timer: asyncio.TimerHandle | None = None
    _is_refused = False
    _unread = 0  # bytes, at the last look
    _moved = 0.0  # when that changed
    _look_timer: asyncio.TimerHandle | None = None
    _answered: RequestResponseCycle | None = None
    """Of the request whose answer goes out now; uvicorn's own `cycle` is that of the last one sent ahead."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        self._bound_kernel()
        if self.limits.open(self._address):
            self._await("head")
            return
        if self.limits.are_full:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "This server has too many connections. Try again.")
        else:
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, "Your address has too many connections to this server.")
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.limits.close(self._address)
        self._await(None)
        if self._look_timer is not None:
            self._look_timer.cancel()
        super().connection_lost(exc)
        self._tell_there_is_nobody()

    def pause_writing(self) -> None:
        """Called by asyncio: the client reads more slowly than we write."""
        super().pause_writing()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        self._beside += len(data)
        if self._is_in_head and self._beside > MAX_HEAD:
            self._refuse_head()
        else:
            self._parse(data)
        if self._is_in_body and self._beside > MAX_HEAD + FRAMING * self._body:
            self._refuse(HTTPStatus.BAD_REQUEST, "The chunks of the body are too small.")
        self._set_timer()

    def on_message_begin(self) -> None:
        """Called by httptools."""
        self._is_in_head, self._beside, self._body = True, 0, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools, also for what comes after a body in chunks, which says nothing here."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Called by httptools, which reads no further where this raises an error."""
        self._is_in_head, self._is_in_body, self._beside = False, True, 0
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD or len(self.headers) > MAX_HEADERS:
            self._refuse_head()
            raise ValueError("too large")
        if sum(name == b"host" for name, _ in self.headers) > 1:  # RFC 9112, 3.2: a proxy may have read another one
            self._refuse(HTTPStatus.BAD_REQUEST, "A request has one Host.")
            raise ValueError("several hosts")
        if len(self.pipeline) >= MAX_AHEAD:
            self._is_refused = True
            self._close()
            raise ValueError("too many requests at once")
        if not self.parser.should_upgrade():
            ahead = len(self.pipeline)
            super().on_headers_complete()
            if len(self.pipeline) == ahead:
                self._answered = self.cycle

    def on_body(self, body: bytes) -> None:
        """Called by httptools."""
        self._beside -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by httptools."""
        self._is_in_body, self._beside = False, 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Called by uvicorn."""
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self._answered = following
        if self._awaits() == "end":
            self._await("end")
        if self.transport.get_write_buffer_size():
            self._watch()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    @property
    def _address(self) -> str | None:
        return None if self.client is None else self.client[0]

    @property
    def _is_answering(self) -> bool:
        """Whether a request that has come so far as its body has no whole answer yet."""
        return not getattr(self.cycle, "response_complete", True)  # there is no cycle before the first request

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self._ignore_upgrade(data[error.args[0] :])
        except httptools.HttpParserError:
            if not self._is_refused:
                self._refuse(HTTPStatus.BAD_REQUEST, "This is no HTTP that can be read here.")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """The request asks for another protocol, of which there is none here: it is read without that wish, as HTTP
        has it (RFC 9110, 7.8). The parser, which takes the wish for granted, has to read it anew.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(HTTPStatus.BAD_REQUEST, "This server is no proxy: it does not take CONNECT.")
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self._parse(b"\r\n".join([*lines, b"", rest]))

    def _set_timer(self) -> None:
        awaited = self._awaits()
        if awaited != self._awaited:
            self._await(awaited)

    def _awaits(self) -> Awaited | None:
        """What has to come next; None while it is the client that waits."""
        if self._is_refused or (self._is_in_body and not self._is_answering):
            return "end"
        if self._is_in_body:
            return "body"
        return "head" if self._is_in_head or not self._is_answering else None

    def _await(self, awaited: Awaited | None) -> None:
        """Begins to wait, for so long as that may take."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._awaited = awaited
        if awaited is not None:
            most = {"head": self.limits.header_timeout, "body": self.limits.body_timeout, "end": LINGER}
            self._since = self.loop.time()
            self._timer = self.loop.call_later(most[awaited], self._late)

    def _late(self) -> None:
        """What was awaited has not come in time, unless it was we who did not read."""
        awaited, self._timer, self._awaited = self._awaited, None, None
        if self.transport.is_closing():
            return
        left = 0.0
        if awaited == "body":
            left = self._since + self.limits.body_timeout + self._body / LEAST_RATE - self.loop.time()
        if self.flow.read_paused or (awaited == "head" and self._is_answering):
            self._await(awaited)
        elif left > 0:
            self._awaited, self._timer = awaited, self.loop.call_later(left, self._late)
        elif awaited == "body" or (awaited == "head" and self._is_in_head):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"The {awaited} of the request took too long to come.")
            self._set_timer()
        else:
            self.transport.close()

    def _watch(self) -> None:
        """Looks whether the client reads, for as long as something waits for it here."""
        if self._look_timer is None:
            self._unread, self._moved = self._count_unread(), self.loop.time()
            self._look_timer = self.loop.call_later(self.limits.stall_seconds / LOOKS, self._look)

    def _look(self) -> None:
        """While writing is paused nothing is added to what is unread: any change of it is the client's doing."""
        self._look_timer = None
        unread, now = self._count_unread(), self.loop.time()
        if unread != self._unread:
            self._unread, self._moved = unread, now
        elif now - self._moved >= self.limits.stall_seconds:
            self.transport.abort()
            return
        if self.transport.get_write_buffer_size():
            self._look_timer = self.loop.call_later(self.limits.stall_seconds / LOOKS, self._look)

    def _count_unread(self) -> int:
        """The bytes that wait here and in the kernel, there until the client's has taken them."""
        waiting = self.transport.get_write_buffer_size()
        with suppress(OSError):
            in_kernel = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
            waiting += int.from_bytes(in_kernel, sys.byteorder)
        return waiting

    def _bound_kernel(self) -> None:
        """Has the kernel take only so much for the client as is on its way; it would keep megabytes."""
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)

    @property
    def _socket(self) -> socket.socket:
        found: socket.socket = self.transport.get_extra_info("socket")
        return found

    def _refuse_head(self) -> None:
        message = f"The headers exceed {MAX_HEAD} bytes or {MAX_HEADERS} lines."
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Ends the connection; with an answer, unless it would get into another one.

        What the client still sends is dropped for a while: were it not read, the client might never see the answer.
        """
        self._is_refused = True
        if self.pipeline or (self._is_answering and self.cycle.response_started):
            self._close()
            return
        self._tell_there_is_nobody()
        body = orjson.dumps(error_body(message, "invalid_request_error"))
        request_id = new_request_id().encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        head += b"x-request-id: %b\r\n\r\n" % request_id
        self.transport.write(STATUS_LINE[status] + head + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()  # nobody else does: the app, which did not keep up with the body, is gone

    def _close(self) -> None:
        """Ends the connection in the middle of an answer."""
        self._tell_there_is_nobody()
        self.transport.close()

    def _tell_there_is_nobody(self) -> None:
        """To the app that answers, if any: nothing that it sends is written from now on."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()


def protocol_of(connections: Connections) -> type[Protocol]:
    """The protocol of a server that has these connections."""
    return type("ServersProtocol", (Protocol,), {"limits": connections})
