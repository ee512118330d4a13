"""Messages over a connected stream socket, each as a four-byte length and its encoding.

Any stream socket will do: today a socket pair between the front end and its child, where each end sees at once when
the other dies. Knows nothing of what the messages mean.
"""

import select
import socket
import struct
from typing import Protocol

from engine.messages import FromEngine, ToEngine, Unreadable, decode_to_engine, encode

_HEADER = struct.Struct("!I")
_READ_SIZE = 1 << 18


def frame(message: ToEngine | FromEngine) -> bytes:
    """`message` as it goes over the wire. Raises OverflowError for an integer of more than 64 bits."""
    payload = encode(message)
    return _HEADER.pack(len(payload)) + payload


class FrameBuffer:
    """Cuts a stream of bytes into the payloads that it carries."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes, in order."""
        buffer = self._buffer
        buffer += data
        payloads = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            begin = start + _HEADER.size
            end = begin + _HEADER.unpack_from(buffer, start)[0]
            if end > len(buffer):
                break
            payloads.append(bytes(buffer[begin:end]))
            start = end
        del buffer[:start]
        return payloads


class Channel(Protocol):
    """What the engine's loop talks to: a connection, or what stands in its place."""

    def send(self, message: FromEngine) -> None:
        """Tells it something."""
        ...

    def receive(self, timeout: float | None) -> list[ToEngine | Unreadable]:
        """What it asks for; waits up to `timeout` seconds for a first message."""
        ...


class Connection:
    """The engine's end: blocking, for a loop that waits only while it has nothing to compute."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._frames = FrameBuffer()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    def fileno(self) -> int:
        """The socket's, for those who wait for several."""
        return self._socket.fileno()

    def send(self, message: FromEngine) -> None:
        """Waits while the front end is behind by more than the socket's buffer.

        Raises ConnectionError when it is gone.
        """
        self._socket.sendall(frame(message))

    def receive(self, timeout: float | None) -> list[ToEngine | Unreadable]:
        """What has arrived; waits up to `timeout` seconds (None: for ever) for a first message.

        Raises ConnectionError when the front end is gone.
        """
        if not self._readable.poll(None if timeout is None else timeout * 1000):
            return []
        messages: list[ToEngine | Unreadable] = []
        while True:
            try:
                data = self._socket.recv(_READ_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages
            if not data:
                raise ConnectionResetError("the front end closed the connection")
            messages += map(decode_to_engine, self._frames.feed(data))

    def has_input(self) -> bool:
        """Whether something has arrived that was not received yet."""
        return bool(self._readable.poll(0))

    def wait_for_hang_up(self) -> None:
        """Blocks until the other end is gone, however much unread data is left."""
        hang_up = select.poll()
        hang_up.register(self._socket, select.POLLRDHUP)
        hang_up.poll()
