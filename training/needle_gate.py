"""The needle test of a checkpoint in training, through the server.

What is asked, and how answers score, is evals/needles.py's.
"""

from pathlib import Path
from typing import Any, Self

from evals import needles as eval_needles
from training.served import ServedCheckpoint


class NeedleGate:
    """Tests the checkpoint that lies in `folder` whenever a test begins; the engine starts when the first is due.

    async with NeedleGate(folder) as gate:
        result = await gate.measure(("single",), [1024, 2048], items=22, seed=1)
    """

    def __init__(self, folder: Path) -> None:
        self._served = ServedCheckpoint(folder)

    async def __aenter__(self) -> Self:
        """Starts nothing yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends the engine, if there is one."""
        await self._served.__aexit__()

    async def measure(self, families: tuple[str, ...], lengths: list[int], *, items: int, seed: int) -> dict[str, Any]:
        """The result of `twogear eval needles`. Raises UsageError where the engine cannot come up."""
        server = await self._served.now(eval_needles.AT_ONCE)
        return await eval_needles.evaluate(server, families, lengths, items, seed)
