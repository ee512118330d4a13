"""A checkpoint in training behind the server: the HTTP application in this process, over an engine that reloads.

What is asked of it is the evaluations' own (evals/).
"""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import httpx

from evals.asking import Server
from server import model_files
from server.app import create_app
from server.modes.profile import load_profile
from server.process_engine_client import ProcessEngineClient  # noqa: TC001  (types are read where they are used)
from server.settings import Settings
from training.engine import running_engine

_TIMEOUT_SECONDS = 3600.0


class ServedCheckpoint:
    """A server of the checkpoint in `folder`, which may be written again meanwhile.

    async with ServedCheckpoint(folder) as served:
        server = await served.now(at_once=32)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self._engine: ProcessEngineClient | None = None
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        """Starts nothing yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends the engine, if there is one."""
        await self._stack.aclose()

    async def now(self, at_once: int) -> Server:
        """The server, with the weights that are in the folder now, for so many questions at once.

        Raises UsageError where no engine can come up.
        """
        if self._engine is not None and self._client is not None:
            await self._engine.reload(self._folder)
            return Server(self._client, at_once)
        settings = Settings(model=str(self._folder))
        profile = load_profile(model_files.choose_profile(self._folder, settings))
        fmt = model_files.load_format(self._folder, profile, settings)
        self._engine = await self._stack.enter_async_context(running_engine(str(self._folder)))
        transport = httpx.ASGITransport(create_app(self._engine, settings, profile, fmt))
        client = httpx.AsyncClient(transport=transport, base_url="http://twogear", timeout=_TIMEOUT_SECONDS)
        self._client = await self._stack.enter_async_context(client)
        return Server(self._client, at_once)
