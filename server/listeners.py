"""The sockets that a server listens on, bound before anything is loaded."""

import errno
import socket

from server.cli_errors import UsageError


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, so that nobody takes it while the model loads; raises UsageError."""
    return bind_all(host, port, 1)[0]


def bind_all(host: str, port: int, number: int) -> list[socket.socket]:
    """So many sockets of the address, between which the kernel divides connections. Raises UsageError.

    The first takes the port for itself, and shares it only then: a port of another server is not shared with that.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UsageError(f"there is no address {host!r} to listen on") from error
    listeners: list[socket.socket] = []
    try:
        for shares in range(number):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shares:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            if number > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            address = listener.getsockname()
        for listener in listeners:
            listener.listen()
    except OSError as error:
        for listener in listeners:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} on {host} is taken; choose another with --port") from error
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listeners
