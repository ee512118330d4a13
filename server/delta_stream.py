"""The deltas of one request on their way from the engine's connection to their reader."""

import asyncio
from collections.abc import Sequence

import msgspec

from engine.messages import Delta
from server.engine_client import ReaderBehind

MOST_PENDING = 2 << 20
"""Bytes. That is a thousand tokens with the 20 likeliest in the place of each, and any number of bare ones."""
TOKEN_BYTES, ENTRY_BYTES = 36, 96
"""Of a token, and of each log-probability told with it."""


class DeltaStream:
    """The deltas of one request on their way to its reader; a slow reader gets several at once, as one."""

    __slots__ = ("_error", "_pending", "_size", "_waiter")

    def __init__(self) -> None:
        self._size = 0
        self._pending: list[Delta] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, delta: Delta) -> bool:
        """Adds a delta for the reader. False: too much waits for it already, and no more deltas are to come."""
        if self._size > MOST_PENDING:
            self.fail(ReaderBehind())
            return False
        self._size += _size(delta)
        self._pending.append(delta)
        self._wake()
        return True

    def fail(self, error: Exception) -> None:
        """No more deltas come; the reader gets the error after those that have."""
        self._error = error
        self._wake()

    async def next(self) -> Delta:
        """All that has come since the last call as one delta, up to one that goes on to another generation; waits for a
        first. Raises the stream's error.
        """
        while not self._pending:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        pending, self._pending, self._size = self._pending, [], 0
        if len(pending) == 1:
            return pending[0]
        end = next((number for number, delta in enumerate(pending, 1) if delta.goes_on), len(pending))
        self._pending = pending[end:]
        self._size = sum(map(_size, self._pending))
        return _merge(pending[:end])

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _size(delta: Delta) -> int:
    """Without the prompt's log-probabilities, which come once, however fast they are read."""
    entries = sum(1 + len(one.top) for one in delta.logprobs) if delta.logprobs else 0
    return TOKEN_BYTES * len(delta.token_ids) + ENTRY_BYTES * entries


def _merge(deltas: Sequence[Delta]) -> Delta:
    return msgspec.structs.replace(
        deltas[-1],
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        cached_tokens=deltas[0].cached_tokens,
        prompt_logprobs=deltas[0].prompt_logprobs,
        logprobs=None if deltas[0].logprobs is None else [one for delta in deltas for one in delta.logprobs or ()],
    )
