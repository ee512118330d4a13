"""What web pages may do: CORS for pages of allowed origins, and nothing that does something for all others.

A page of any site can send requests to a server on the reader's own machine. It could not read the answers, but the
server would do the work. Browsers say where a request comes from (`Origin`, `Sec-Fetch-Site`). By a name that it lets
point to 127.0.0.1 a page can also pass for the server's own (DNS rebinding); then the `Host` is one that is not ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from server.errors import ForbiddenError

Headers = list[tuple[bytes, bytes]]
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # nothing that they ask for does anything, and a foreign page cannot read it
FOREIGN_SITES = (b"cross-site", b"same-site")
EXPOSED = b", ".join(
    [
        b"x-request-id",
        b"request-id",
        b"retry-after",
        *(
            b"x-ratelimit-%s-%s" % (what, kind)
            for kind in (b"requests", b"tokens")
            for what in (b"limit", b"remaining", b"reset")
        ),
    ]
)
PREFLIGHT_SECONDS = b"600"
DEFAULT_PORTS = {"http": 80, "https": 443}
LOCAL_NAMES = ("localhost", "ip6-localhost")


@dataclass(frozen=True, kw_only=True)
class Origins:
    """`allowed` are origins as browsers send them, `*` for all. `hosts` are names by which the server may be called
    beside its own; where it listens on a loopback address (`is_local`), or where there are any, no others are served.
    """

    allowed: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    is_local: bool = False
    _allowed_bytes: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_allowed_bytes", frozenset(origin.encode() for origin in self.allowed))

    def check(self, method: str, headers: Mapping[bytes, bytes], server: str) -> None:
        """`server`: the address of this machine that the request came to. Raises ForbiddenError."""
        host = headers.get(b"host", b"").decode("latin-1")
        if host and (self.hosts or (self.is_local and is_loopback(server))):
            self._check_host(host)
        if method not in SAFE_METHODS and not self.allows(headers.get(b"origin")):
            _check_page(headers, host)

    def allows(self, origin: bytes | None) -> bool:
        """Whether it is one of the allowed ones."""
        return origin is not None and (origin in self._allowed_bytes or b"*" in self._allowed_bytes)

    def response_headers(self, origin: bytes) -> Headers:
        """What lets a page of an allowed origin read a response."""
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED),
            (b"vary", b"Origin"),
        ]

    def preflight_headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        """What tells a browser, before it sends a request of an allowed origin, that it may."""
        asked = headers.get(b"access-control-request-headers", b"authorization, content-type")
        made = [
            (b"access-control-allow-origin", headers[b"origin"]),
            (b"access-control-allow-methods", b"GET, POST, DELETE, HEAD, OPTIONS"),
            (b"access-control-allow-headers", asked),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
            (b"vary", b"Origin, Access-Control-Request-Headers"),
        ]
        if b"access-control-request-private-network" in headers:
            made.append((b"access-control-allow-private-network", b"true"))
        return made

    def _check_host(self, host: str) -> None:
        name = _name(host)
        if name not in self.hosts and name not in LOCAL_NAMES and not is_loopback(name):
            raise ForbiddenError(
                f"This server is not {name[:64]!r}; --allowed-hosts says by which names it may be called."
            )


def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser asks if a page may send a request."""
    return method == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address, or the name `localhost`."""
    try:
        return ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() in LOCAL_NAMES


def _check_page(headers: Mapping[bytes, bytes], host: str) -> None:
    """Refuses what a page of another origin sends."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site == b"same-origin":
        return
    if site in FOREIGN_SITES or (origin is not None and not _is_of(origin.decode("latin-1"), host)):
        who = "another site" if origin is None else repr(origin.decode("latin-1")[:128])
        raise ForbiddenError(f"A web page of {who} may not use this server; --allowed-origins says which may.")


def _is_of(origin: str, host: str) -> bool:
    """Whether the origin is the host itself, by any scheme: there may be a proxy that speaks TLS before it."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    usual = DEFAULT_PORTS.get(parts.scheme)
    names = {parts.netloc.lower()}
    if port in (None, usual):
        names |= {f"{parts.hostname}", f"{parts.hostname}:{usual}"}
    return bool(parts.netloc) and host.lower() in names


def _name(host: str) -> str:
    """A Host header without the port."""
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[")
    return host.partition(":")[0].lower().removesuffix(".")
