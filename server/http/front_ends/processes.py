"""Starts the front ends, starts one again that ended, and ends them with the server."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace

from starlette.types import ASGIApp

from server.engine_process import exit_words
from server.http.config import CLOSE_SECONDS
from server.http.front_ends.calls import Calls
from server.http.front_ends.messages import Headers, encode_settings, framed
from server.settings import Settings

logger = logging.getLogger("twogear.server")

PAUSE_SECONDS = 1.0
"""Before one that ended is started again."""
END_SECONDS = 2 * CLOSE_SECONDS
"""For one to leave before it is killed."""


class FrontEnds:
    """One for each of `listeners`, which are of one port; in front of `app`.

    The listeners stay open here: who connects while a front end is started again waits, and is not refused. Answers
    have `headers` beside their own.
    """

    def __init__(self, app: ASGIApp, settings: Settings, listeners: Sequence[socket.socket]) -> None:
        self.headers: Headers = []
        self.calls: dict[int, Calls] = {}
        """Of those that are up, by the number of the listener."""
        self._app = app
        self._settings = encode_settings(share(settings, len(listeners)))
        self._listeners = listeners
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Returns at once."""
        self._tasks = [asyncio.create_task(self._keep(number)) for number in range(len(self._listeners))]

    async def close(self) -> None:
        """Ends them once what runs has ended, or has had its time."""
        self._closing.set()
        calls = list(self.calls.values())
        await asyncio.gather(*(one.over(CLOSE_SECONDS) for one in calls))
        for one in calls:
            one.link.close()
        await asyncio.gather(*self._tasks)
        for listener in self._listeners:
            listener.close()

    async def _keep(self, number: int) -> None:
        while not self._closing.is_set():
            status = await self._run(number)
            if not self._closing.is_set():
                logger.error("A front end %s; its connections are lost. It is started again.", exit_words(status))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_SECONDS):
                    await self._closing.wait()

    async def _run(self, number: int) -> int:
        """One life of one of them; its exit status."""
        ours, theirs = socket.socketpair()
        fds = theirs.fileno(), self._listeners[number].fileno()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server.http.front_ends", "--link-fd", str(fds[0]), "--listen-fd", str(fds[1])),
                pass_fds=fds,
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                start_new_session=True,  # Ctrl-C is the server's
            )
        calls = self.calls[number] = Calls(self._app, self.headers, process.pid)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: calls.link, sock=ours)
            calls.link.send(framed(self._settings))
            if self._closing.is_set():  # while it was started
                calls.link.close()
            await calls.lost.wait()
        finally:
            del self.calls[number]
        return await _ended(process)


def share(settings: Settings, front_ends: int) -> Settings:
    """What one of so many front ends is told: of limits of connections, its part."""
    return replace(
        settings,
        max_connections=-(-settings.max_connections // front_ends),
        max_connections_per_address=-(-settings.max_connections_per_address // front_ends),
    )


async def _ended(process: asyncio.subprocess.Process) -> int:
    """Its exit status, once it has had its time to leave."""
    try:
        async with asyncio.timeout(END_SECONDS):
            return await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()
