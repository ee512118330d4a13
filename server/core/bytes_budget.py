"""Memory that many requests share: who wants more than is left waits for its turn, and not for ever.

Counts bytes; whose and what for is said by those who hold them. Runs in one event loop.
"""

import asyncio
from collections import deque
from functools import partial

PATIENCE = 10.0
"""Seconds for a turn."""


class BudgetSpent(Exception):  # noqa: N818 - reads as what it says
    """No turn came in time."""


class BytesBudget:
    """`most` bytes, of which each holder takes as many as it needs, bit by bit.

    Holders could wait for each other for ever, each with a part of what it needs. So one of them, the first in the
    queue, may always go on, and exceed the budget by what it needs.
    """

    def __init__(self, most: int, patience: float = PATIENCE) -> None:
        self.used = 0
        self._most = most
        self._patience = patience
        self._has_exceeding = False
        self._waiting = deque[tuple["BytesHeld", int, asyncio.Future[None]]]()

    def holder(self) -> "BytesHeld":
        """One that holds nothing yet."""
        return BytesHeld(self)

    async def take(self, holder: "BytesHeld", size: int) -> None:
        """`size` bytes more for the holder, when it is its turn. Raises BudgetSpent."""
        if holder.exceeds or (not self._waiting and self.used + size <= self._most):
            self._give(holder, size)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((holder, size, turn))
        self._go_on()
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except TimeoutError:
            raise BudgetSpent from None
        finally:
            if not turn.done() or turn.cancelled():
                self._waiting = deque(one for one in self._waiting if one[2] is not turn)
                self._go_on()

    def give_back(self, size: int, *, exceeds: bool) -> None:
        """So many bytes; `exceeds`: of the one holder that may exceed the budget."""
        self.used -= size
        if exceeds:
            self._has_exceeding = False
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting:
            holder, size, turn = self._waiting[0]
            if self.used + size > self._most:
                if self._has_exceeding:
                    return
                holder.exceeds = self._has_exceeding = True
            self._waiting.popleft()
            if not turn.done():
                self._give(holder, size)
                turn.set_result(None)

    def _give(self, holder: "BytesHeld", size: int) -> None:
        holder.size += size
        self.used += size


class BytesHeld:
    """What one holds of a budget: `size` bytes. Given back with the last reference, if not before."""

    def __init__(self, budget: BytesBudget) -> None:
        self.size = 0
        self.exceeds = False
        self._budget = budget
        self._loop = asyncio.get_running_loop()

    async def take(self, size: int) -> None:
        """So many bytes more. Raises BudgetSpent."""
        await self._budget.take(self, size)

    def release(self) -> None:
        """Gives all back; more than once is nothing."""
        if self.size or self.exceeds:
            self._budget.give_back(self.size, exceeds=self.exceeds)
            self.size, self.exceeds = 0, False

    def __del__(self) -> None:
        """The last reference may go on any thread, and after the loop."""
        if (self.size or self.exceeds) and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(partial(self._budget.give_back, self.size, exceeds=self.exceeds))
