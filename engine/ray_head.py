"""Whether the head of a Ray cluster answers: Ray itself takes minutes to say that it does not."""

import socket

SECONDS = 10.0


def check_head(address: str) -> None:
    """Raises ConnectionError, in words, where nobody listens at `address` (HOST:PORT). `auto` is for Ray to find."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise ConnectionError(f"{address!r} is no HOST:PORT of a Ray head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConnectionError(
            f"no Ray answers at {address} ({reason}); start its head there (ray start --head), or name another"
        ) from error
