"""The needle test of a checkpoint in training: the server over an engine that takes the weights as they come.

The HTTP application is the server's own, in this process; the engine runs in one of its own and is started once, when
the first test is due. What is asked, and how answers score, is benchmarks/eval_needles.py's.
"""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks import eval_needles
from benchmarks.asking import Server
from server import launch
from server.engine_client import ProcessEngineClient  # noqa: TC001  (types are read where they are used)
from server.http.app import create_app
from server.modes.profile import load_profile
from server.settings import Settings
from training.agapo.run import running_engine

_AT_ONCE = 8
_TIMEOUT_SECONDS = 3600.0


class NeedleGate:
    """A server of the checkpoint that lies in `folder` whenever a test begins.

    async with NeedleGate(folder) as gate:
        result = await gate.measure(("single",), [1024, 2048], items=22, seed=1)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self._engine: ProcessEngineClient | None = None
        self._server: Server | None = None

    async def __aenter__(self) -> Self:
        """Starts nothing yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends the engine, if there is one."""
        await self._stack.aclose()

    async def measure(self, families: tuple[str, ...], lengths: list[int], *, items: int, seed: int) -> dict[str, Any]:
        """The result of `twogear eval needles`. Raises UsageError where the engine cannot come up."""
        server = await self._with_weights()
        version, outcomes = await eval_needles.measure(server, families, lengths, items, seed)
        return eval_needles.summarize(version, outcomes, items=items, seed=seed)

    async def _with_weights(self) -> Server:
        """The server, with the weights that are in the folder now."""
        if self._engine is not None and self._server is not None:
            await self._engine.reload(self._folder)
            return self._server
        settings = Settings(model=str(self._folder))
        profile = load_profile(launch.choose_profile(self._folder, settings))
        fmt = launch.load_format(self._folder, profile, settings)
        self._engine = await self._stack.enter_async_context(running_engine(str(self._folder)))
        transport = httpx.ASGITransport(create_app(self._engine, settings, profile, fmt))
        client = httpx.AsyncClient(transport=transport, base_url="http://twogear", timeout=_TIMEOUT_SECONDS)
        self._server = Server(await self._stack.enter_async_context(client), _AT_ONCE)
        return self._server
