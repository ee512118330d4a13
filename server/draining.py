"""The server as uvicorn runs it: what a signal to end means for requests that are under way."""

import logging
import signal
import socket
from time import monotonic
from types import FrameType

import uvicorn

from server.core.serving import Serving
from server.http.front_ends.processes import FrontEnds

logger = logging.getLogger("twogear.server")

THINKING_SHARE = 0.5  # of the time that requests have after SIGTERM


class DrainingServer(uvicorn.Server):
    """SIGTERM lets running requests end first, answering new ones with 503; Ctrl-C, or a second signal, does not.

    After half of the time, thinking is closed for the model: a request that would have ended anyway is not cut, and
    all others have as long for their answers. It listens until the end, so that probes and late clients get an answer.
    With `front_ends`, these listen.
    """

    def __init__(self, serving: Serving, config: uvicorn.Config, front_ends: FrontEnds | None = None) -> None:
        super().__init__(config)
        self.serving = serving
        self.front_ends = front_ends
        self._drain_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Called by uvicorn for each signal."""
        if self.should_exit:
            self.force_exit = True
        elif sig == signal.SIGTERM and not self.serving.draining:
            self._begin_drain()
        else:
            self.should_exit = True
        self.serving.draining = True

    def _begin_drain(self) -> None:
        seconds = self.serving.settings.drain_seconds
        logger.warning("SIGTERM: %d requests have %g s to end; new ones are refused.", self.serving.running, seconds)
        self._drain_since = monotonic()
        # A client that went on using its connection would find it closed one day.
        self.config.encoded_headers.append((b"connection", b"close"))
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        if self.front_ends is not None:
            self.front_ends.headers.append((b"connection", b"close"))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn at the start."""
        if self.front_ends is None:
            await super().startup(sockets)
            return
        await super().startup([])
        self.front_ends.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn at the end: what still runs ends with an error of ours, before it would be cancelled."""
        if self.serving.running:
            logger.warning("%d requests did not end in time and get an error.", self.serving.running)
        await self.serving.engine.close()
        if self.front_ends is not None:
            await self.front_ends.close()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; whether to exit."""
        if self._drain_since is not None:
            share = (monotonic() - self._drain_since) / self.serving.settings.drain_seconds
            if self.serving.running == 0 or share > 1:
                self.should_exit = True
            elif share > THINKING_SHARE and (closed := self.serving.end_all_thinking()):
                logger.warning("The thinking of %d choices is closed, so that they answer in time.", closed)
        return await super().on_tick(counter)
