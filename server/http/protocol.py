"""HTTP as uvicorn speaks it, with errors in our shape for what is no HTTP, and a limit to a request's head.

Everything after the head is the app's part.
"""

import fcntl
import sys
import termios
from contextlib import suppress
from http import HTTPStatus

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import error_body
from server.http.sse import CONNECTION
from server.telemetry.record import new_request_id

MAX_HEAD = 65_536  # bytes of request line and headers, as in uvicorn's other implementation


class Protocol(HttpToolsProtocol):
    """One connection. The limit is looked at once for each piece of the head that comes in."""

    _head_bytes: int | None = None  # while a head is coming in

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The headers exceed {MAX_HEAD} bytes.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Called by httptools."""
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Called by httptools."""
        self._head_bytes = None
        self.scope["extensions"] = {CONNECTION: {CONNECTION: self}}
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def unread(self) -> int:
        """For a stream: the bytes that wait here and in the kernel, there until the client's has taken them."""
        waiting = self.transport.get_write_buffer_size()
        with suppress(OSError):
            in_kernel = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            waiting += int.from_bytes(in_kernel, sys.byteorder)
        return waiting

    def abort(self) -> None:
        """For a stream: ends the connection at once."""
        self.transport.abort()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        body = orjson.dumps(error_body(message, "invalid_request_error"))
        request_id = new_request_id().encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        head += b"x-request-id: %b\r\n\r\n" % request_id
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
