"""The deltas of one request on their way from the engine's connection to their reader."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from engine.messages import Delta
from server.engine_client import ReaderBehind
from server.pacer import Pacer

MOST_PENDING = 2 << 20
"""Bytes. That is a thousand tokens with the 20 likeliest in the place of each, and any number of bare ones."""
TOKEN_BYTES, ENTRY_BYTES = 36, 96
"""Of a token, and of each log-probability told with it."""


class DeltaStream:
    """The deltas of one request on their way to its reader, up to that with `finish`. A slow reader gets several at
    once, as one, and so does each where `pacer` is on. What ends a generation is never held back, nor the first of
    it, which are more than `free_tokens`.

    `leave` is called with it when its reader leaves.
    """

    __slots__ = (
        *("_error", "_free_tokens", "_has_ended", "_is_held", "_leave", "_pacer", "_pending", "_rests", "_size"),
        "_waiter",
    )

    def __init__(self, leave: Callable[["DeltaStream"], None], pacer: Pacer, free_tokens: int = 0) -> None:
        self._leave = leave
        self._pacer = pacer
        self._free_tokens = free_tokens
        self._rests = False
        self._is_held = False  # what is pending waits for the end of the rest
        self._has_ended = False
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
        if self._rests and self._free_tokens < 0 and delta.finish is None and not delta.goes_on:
            self._is_held = self._is_held or not self._pending
            self._pending.append(delta)
        else:
            self._pending.append(delta)
            self._show(delta)
        return True

    def release(self) -> bool:
        """Called by the pacer when the rest is over."""
        self._rests = self._is_held and self._pacer.is_on
        if self._is_held:
            self._is_held = False
            self._wake()
        return self._rests

    def fail(self, error: Exception) -> None:
        """No more deltas come; the reader gets the error after those that have."""
        self._error = error
        self._is_held = False
        self._wake()

    def __aiter__(self) -> "DeltaStream":
        """Itself."""
        return self

    async def __anext__(self) -> Delta:
        """All that has come since the last call as one delta, up to one that goes on to another generation; waits for a
        first. Raises the stream's error. Who is cancelled while it waits has left.
        """
        if self._has_ended:
            raise StopAsyncIteration
        while not self._pending or self._is_held:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self._leave(self)
                raise
        delta = self._pending[0]
        if len(self._pending) > 1:
            delta = self._merge_pending()
        else:
            self._pending, self._size = [], 0
        self._has_ended = delta.finish is not None
        return delta

    async def aclose(self) -> None:
        """No more deltas are wanted."""
        self._has_ended = True
        self._leave(self)

    def _show(self, delta: Delta) -> None:
        """Wakes the reader for `delta`, which is the last put, and may rest then."""
        self._is_held = False
        self._wake()
        self._free_tokens = 0 if delta.goes_on else self._free_tokens - len(delta.token_ids)
        if self._free_tokens < 0 and not self._rests and self._pacer.is_on:
            self._rests = True
            self._pacer.rest(self)

    def _merge_pending(self) -> Delta:
        pending = self._pending
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
