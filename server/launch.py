"""From settings to a running server: binds the port, makes the app, shows the start, and ends it in good order.

The front end alone listens, from the first second on; the engine comes up behind it.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from time import monotonic

import uvicorn
from fastapi import FastAPI
from rich.console import Console
from rich.logging import RichHandler

from engine.defaults import engine_defaults
from engine.messages import Ready
from server.access.origins import is_loopback
from server.app import create_app
from server.cli_errors import UsageError
from server.core.adapters import base_warnings, numbered
from server.core.grammar_pool import POOL
from server.draining import DrainingServer
from server.engine_client import EngineStatus
from server.http.config import server_config
from server.http.connections import Connections
from server.http.front_ends.processes import FrontEnds, share
from server.listeners import bind_all
from server.model_files import choose_profile, load_format, tokenizer_folder, try_format, weights_line, with_weights
from server.modes.resolve import check_names
from server.modes.start_report import report, warnings
from server.offload import prefer_event_loop
from server.reloading import Reloading, load_profile_and_keys
from server.replicas import engine_of
from server.settings import Settings
from server.start_display import StartDisplay
from server.telemetry.observers import open_observers

POLL_SECONDS = 0.1


def launch(settings: Settings, engine_options: Sequence[str]) -> int:
    """Serves until a signal ends it; returns the exit code. Raises UsageError, also when the model cannot be loaded."""
    folder = tokenizer_folder(settings.model)
    settings = with_weights(settings, folder, engine_options)
    profile, keys = load_profile_and_keys(folder, settings)
    try_format(folder, profile, settings)
    fmt = load_format(folder, profile, settings)
    console = Console(stderr=True, highlight=False)
    configure_logging(console, verbose=settings.verbose)
    observers = open_observers(settings)
    engine = engine_of(settings, engine_options, numbered(settings.lora_modules))
    listeners = bind_all(settings.host, settings.port, settings.api_server_count)
    try:
        app = create_app(engine, settings, profile, fmt, keys=keys, observers=observers)
        check_names([settings.model_name, *(module.name for module in settings.lora_modules)], app.state.serving.modes)
    except ValueError as error:
        for listener in listeners:
            listener.close()
        raise UsageError(f"{settings.model}: {error}") from error
    choices = engine_defaults(settings.model, engine_options)
    front_ends = FrontEnds(app, settings, listeners) if len(listeners) > 1 else None
    server = DrainingServer(app.state.serving, loaded_config(app, settings), front_ends)
    display = StartDisplay(console, choices if settings.verbose else ())
    name = (settings.profile or choose_profile(folder, settings)).stem
    modes = app.state.serving.modes
    display.note([*weights_line(settings, folder, engine_options), *report(modes, fmt, name)])
    warned = [open_address_warning(settings, has_keys=keys is not None), connections_warning(settings)]
    warned += base_warnings(settings.lora_modules, settings.model)
    for warning in [*warned, *warnings(modes, fmt, profile, name, settings.model_name)]:
        if warning:
            display.warn(warning)
    POOL.begin()
    prefer_event_loop()
    gc.freeze()  # what is there now stays: looking through it again would hold up all streams for tens of milliseconds
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_serve(server, listeners, display))
    return 0


def open_address_warning(settings: Settings, *, has_keys: bool) -> str:
    """What the user may not have meant: an address that others can reach, and no keys. Empty otherwise."""
    if has_keys or is_loopback(settings.host):
        return ""
    return f"Anyone who can reach {settings.host} may use this server: it has no API keys (--api-keys FILE)."


def connections_warning(settings: Settings) -> str:
    """That there can be fewer connections than the settings allow. Empty where there can be all."""
    most = Connections(share(settings, settings.api_server_count)).most * settings.api_server_count
    if most >= settings.max_connections:
        return ""
    return (
        f"There can be {most} connections and not {settings.max_connections} (--max-connections): the system allows "
        "this process too few open files (ulimit -Hn)."
    )


def committed_warning(settings: Settings, ready: Ready) -> str:
    """That a limit does not hold with this engine. Empty where it does, or is not asked for."""
    if settings.max_committed is None or ready.page_needs:
        return ""
    return "--max-committed is off: this engine cannot tell which pages a request takes (see its log, page counts)."


def loaded_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """The same with its files read; raises UsageError where they are no certificate and its key."""
    config = server_config(app, settings)
    try:
        config.load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(f"--ssl-…: the files cannot be used: {error}") from error
    return config


async def _serve(server: DrainingServer, listeners: list[socket.socket], display: StartDisplay) -> None:
    reloading = Reloading(server)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloading.begin)
    host, port = listeners[0].getsockname()[:2]
    serving = asyncio.create_task(server.serve(sockets=listeners))
    try:
        scheme = "https" if server.config.is_ssl else "http"
        failure = await _watch_start(server, display, f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    finally:
        display.close()
    if failure is not None:
        server.should_exit = True
    await serving
    if failure is not None:
        raise UsageError(failure.reason or failure.detail)


async def _watch_start(server: DrainingServer, display: StartDisplay, url: str) -> EngineStatus | None:
    """Shows the start until the engine is up or the server ends; the last status of an engine that cannot come up."""
    started = monotonic()
    while not server.should_exit:
        status = server.serving.engine.status
        if status.final:
            return status
        display.show(status)
        if status.state == "ready":
            serving = server.serving
            if serving.engine.ready is not None and (
                warning := committed_warning(serving.settings, serving.engine.ready)
            ):
                display.warn(warning)
            display.ready(url, monotonic() - started, serving.settings.model_name, list(serving.modes.by_name)[-1])
            return None
        await asyncio.sleep(POLL_SECONDS)
    return None


def configure_logging(console: Console, *, verbose: bool) -> None:
    """On stderr: warnings, or all that the engine and requests have to say."""
    handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S") if sys.stderr.isatty() else None
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s" if handler else "%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[handler] if handler else None,
    )
