"""What is remembered for clients, counted in bytes by client: where there is too much, the largest loses its oldest.

So nobody can push out what the server remembers for others. Knows neither what is remembered nor where it lies.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class _Share(Generic[Key]):
    """What one client has: `size` in bytes, and that of each key, oldest first."""

    def __init__(self) -> None:
        self.size = 0
        self.keys: dict[Key, int] = {}


class ClientMemory(Generic[Key]):
    """Counts keys that clients have, up to `most_bytes` in all. Not for several threads at once."""

    def __init__(self, most_bytes: int) -> None:
        self.size = 0
        """In bytes."""
        self._most_bytes = most_bytes
        self._shares = defaultdict[str, _Share[Key]](_Share)

    def count(self, client: str, key: Key, size: int) -> None:
        """`key` takes so many bytes more, or less where `size` is negative. A new one is its client's newest."""
        share = self._shares[client]
        share.keys[key] = share.keys.get(key, 0) + size
        share.size += size
        self.size += size

    def forget(self, client: str, key: Key) -> None:
        """It takes nothing any more; nothing happens where it did not."""
        share = self._shares.get(client)
        if share is None or key not in share.keys:
            return
        size = share.keys.pop(key)
        share.size -= size
        self.size -= size
        if not share.keys:
            del self._shares[client]

    def overflow(self) -> Iterator[tuple[str, Key]]:
        """The clients and keys that had to go until the rest fits; they are forgotten here."""
        while self.size > self._most_bytes:
            client, share = max(self._shares.items(), key=lambda named: named[1].size)
            key = next(iter(share.keys))
            self.forget(client, key)
            yield client, key
