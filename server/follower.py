"""`twogear serve` on each machine of a model that is spread over several, but for the first: workers, and no HTTP."""

import asyncio
import os
import signal
from collections.abc import Collection, Sequence
from time import monotonic

from rich.console import Console

from engine.defaults import Nodes
from server.cli_errors import UsageError
from server.engine_client import EngineUnavailable
from server.engine_supervisor import EngineSupervisor, OfRequests
from server.launch import POLL_SECONDS, configure_logging
from server.model_files import tokenizer_folder, with_weights
from server.process_engine_client import ENVIRONMENT
from server.settings import Settings
from server.start_display import StartDisplay

END_SECONDS = 10.0
"""That the first machine has after its requests, to end."""


class _Nothing:
    """What these workers are asked for comes from the first machine."""

    running: Collection[str] = ()
    prefilling_tokens = 0

    def take(self, message: OfRequests) -> None:
        """None comes."""

    def fail(self, error: EngineUnavailable) -> None:
        """Nothing is under way."""


class _Until:
    """How long it goes on. Ctrl-C ends it at once; after SIGTERM the first machine may have requests to finish."""

    def __init__(self, drain_seconds: float) -> None:
        self._end: float | None = None
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._stop, 0.0)
        loop.add_signal_handler(signal.SIGTERM, self._stop, drain_seconds + END_SECONDS)

    def _stop(self, seconds: float) -> None:
        self._end = min(monotonic() + seconds, self._end or float("inf"))

    def is_over(self, *, works: bool) -> bool:
        """`works`: whether the first machine is there."""
        return self._end is not None and (not works or monotonic() >= self._end)


def follow(settings: Settings, engine_options: Sequence[str]) -> int:
    """Runs this machine's workers, again and again where they end, until a signal ends it; the exit code.

    Raises UsageError, also where they cannot come up.
    """
    settings = with_weights(settings, tokenizer_folder(settings.model), engine_options)
    console = Console(stderr=True, highlight=False)
    configure_logging(console, verbose=settings.verbose)
    asyncio.run(_follow(settings, engine_options, StartDisplay(console, ())))
    return 0


async def _follow(settings: Settings, engine_options: Sequence[str], display: StartDisplay) -> None:
    until = _Until(settings.drain_seconds)
    supervisor = EngineSupervisor(
        _Nothing(),
        ["--model", settings.model, "--", *engine_options],
        {**os.environ, **ENVIRONMENT},
        most_seconds=settings.engine_timeout,
        name="This machine's part of the engine",
    )
    supervisor.start()
    began, is_told = monotonic(), False
    try:
        while not until.is_over(works=(status := supervisor.status).state == "ready"):
            if status.final:
                raise UsageError(status.reason or status.detail)
            if status.state == "ready" and not is_told:
                is_told = True
                display.follows(Nodes.of(engine_options), monotonic() - began)
            elif not is_told:
                display.show(status)
            await asyncio.sleep(POLL_SECONDS)
    finally:
        display.close()
        await supervisor.close()
