"""How many connections there may be, in all and from one address, and how long a client may take.

Counts and times only; what goes over a connection is `protocol`'s.
"""

import resource
from collections import Counter
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from server.settings import Settings

MOST_FILES = 1 << 17
SPARE_FILES = 256
"""For all but connections: the engine, the processes that write grammars, logs."""
MOST_BACKLOG = 2048
"""Connections that the kernel holds ready. All of them may be accepted before one too many can be closed."""
LEAST_RATE = 65_536
"""Bytes a second: a body that comes at least so fast is never too slow."""
NETWORK_BYTES = 8
"""Of an IPv6 address: the rest is the client's to choose."""


class Connections:
    """The connections of one server. `backlog`: how many the kernel may hold ready for it."""

    def __init__(self, settings: Settings) -> None:
        files = _open_files()
        self.backlog = min(MOST_BACKLOG, files // 4)
        self.header_timeout = settings.header_timeout
        self.body_timeout = settings.body_timeout
        self.stall_seconds = settings.stall_seconds
        self.most = max(1, min(settings.max_connections, files - self.backlog - SPARE_FILES))
        self.most_of_one = settings.max_connections_per_address
        self._count = 0
        self._by_source = Counter[bytes]()

    def open(self, address: str | None) -> bool:
        """Counts one more from an address (None: a local socket); whether it may stay. Kept or not, `close` it."""
        self._count += 1
        source = _source(address)
        if source is None:
            return self._count <= self.most
        self._by_source[source] += 1
        return self._count <= self.most and self._by_source[source] <= self.most_of_one

    def close(self, address: str | None) -> None:
        """One from the address is gone."""
        self._count -= 1
        source = _source(address)
        if source is not None:
            self._by_source[source] -= 1
            if not self._by_source[source]:
                del self._by_source[source]

    @property
    def are_full(self) -> bool:
        """Whether all places are taken, whoever has them."""
        return self._count > self.most


@lru_cache(maxsize=1024)
def _source(address: str | None) -> bytes | None:
    """Whom an address belongs to; None for this machine, where proxies are, of which nothing is asked."""
    if address is None:
        return None
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if parsed.is_loopback:
        return None
    return parsed.packed[:NETWORK_BYTES]


def _open_files() -> int:
    """How many this process may have open, once it has raised its limit as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft
