"""Who a request comes from: the key that it brings, among those that the server has now."""

from collections.abc import Mapping

from server.access.keys import KeyFile, KeyRing, RouteGroup
from server.access.quota import ANYONE, Account, Caller
from server.errors import AuthenticationError, ForbiddenError

BEARER = b"bearer "
Group = RouteGroup | None
"""What a route belongs to; None: it is open to all."""


class Access:
    """The keys of a server, and what each has used. Without keys, everyone may do everything."""

    def __init__(self, file: KeyFile | None = None) -> None:
        self._accounts: dict[str, Account] = {}
        self.replace(file)

    def replace(self, file: KeyFile | None) -> None:
        """Takes other keys, at once. What runs goes on; what a key has used stays counted under its name."""
        keys = () if file is None else file.keys
        accounts = {key.name: self._accounts.get(key.name) or Account(key) for key in keys}
        for key in keys:
            accounts[key.name].adopt(key)
        self._accounts = accounts
        self._open = frozenset[Group](() if file is None else file.open) | {None}
        self._ring = None if file is None else KeyRing(keys)

    @property
    def has_keys(self) -> bool:
        """Whether requests need one."""
        return self._ring is not None

    @property
    def names(self) -> list[str]:
        """Of the keys."""
        return list(self._accounts)

    def caller(self, headers: Mapping[bytes, bytes], group: Group) -> Caller:
        """Who sends a request with these headers to a route of `group`.

        Raises AuthenticationError without a key of the server's, ForbiddenError for one that may not use such routes.
        """
        if self._ring is None:
            return ANYONE
        secrets = _secrets(headers)
        key = next((key for secret in secrets if (key := self._ring.find(secret)) is not None), None)
        if key is None:
            if group in self._open:
                return ANYONE
            raise AuthenticationError(brought_one=bool(secrets))
        if group not in self._open and group not in key.routes:
            raise ForbiddenError(f"The key {key.name!r} may use {', '.join(key.routes) or 'nothing'}, not {group}.")
        return Caller(self._accounts[key.name])


def _secrets(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """What OpenAI's clients send as `Authorization: Bearer`, and Anthropic's as `x-api-key`."""
    found = [headers[b"x-api-key"]] if headers.get(b"x-api-key") else []
    authorization = headers.get(b"authorization", b"")
    if authorization[: len(BEARER)].lower() == BEARER:
        found.insert(0, authorization[len(BEARER) :].strip())
    return [secret for secret in found if secret]
