"""From settings to a running server: binds the port, makes the app, shows the start, and ends it in good order.

The front end alone listens, from the first second on; the engine comes up behind it.
"""

import asyncio
import errno
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from types import FrameType

import uvicorn
from fastapi import FastAPI
from rich.console import Console
from rich.logging import RichHandler

from chat_templates.checkpoint import read_template
from chat_templates.format import ChatFormat
from engine.checkpoint import ModelError, read_config
from engine.defaults import Machine, Nodes, engine_defaults
from engine.messages import Ready
from engine.weights import check_room, check_weights, default_weights, held_weights, start_line
from model_impl.cpu.native import cpu_flags
from model_impl.weights import VARIABLE
from server.access.keys import KeyFile, check_modes, keys_of
from server.access.origins import is_loopback
from server.app import create_app
from server.cli_errors import UsageError
from server.core.adapters import base_warnings, numbered
from server.core.grammar_pool import POOL
from server.core.serving import Serving
from server.engine_client import EngineStatus
from server.http.config import server_config
from server.http.connections import Connections
from server.http.front_ends.processes import FrontEnds, share
from server.modes.checkpoint_sampling import with_sampling
from server.modes.mode import TRIED_MESSAGES, Modes
from server.modes.profile import Profile, load_profile, shipped_profile, styles_of
from server.modes.resolve import check_names
from server.modes.start_report import report, warnings
from server.offload import prefer_event_loop
from server.replicas import check_heads, engine_of
from server.settings import Settings
from server.start_display import StartDisplay
from server.telemetry.observers import open_observers

logger = logging.getLogger("twogear.server")

POLL_SECONDS = 0.1
FETCHED = ["tokenizer*.json", "config.json", "generation_config.json", "chat_template.*", "hf_quant_config.json"]
TRY_SECONDS = 60.0  # of processor time: a machine may stand still
THINKING_SHARE = 0.5  # of the time that requests have after SIGTERM


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


async def _serve(server: "DrainingServer", listeners: list[socket.socket], display: StartDisplay) -> None:
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


async def _watch_start(server: "DrainingServer", display: StartDisplay, url: str) -> EngineStatus | None:
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


class Reloading:
    """SIGHUP: profile and keys anew, as they are in their files now. What cannot be used leaves all as it is.

    The files are read in a thread, so that streams go on meanwhile. Where the signal says that the terminal is gone,
    the server ends as it would without this.
    """

    def __init__(self, server: DrainingServer) -> None:
        self._server = server
        # Under nohup the signal is ignored, and a terminal that goes away is meant to change nothing.
        self._has_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _has_terminal()
        self._task: asyncio.Task[None] | None = None
        self._again = False

    @property
    def is_busy(self) -> bool:
        """Whether files are being read."""
        return self._task is not None

    def begin(self) -> None:
        """Called for each signal; what comes while files are read counts for another time."""
        if self._has_terminal and not _has_terminal():
            self._server.handle_exit(signal.SIGTERM, None)
        elif self._task is not None:
            self._again = True
        else:
            self._task = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        serving = self._server.serving
        try:
            await reload(serving)
        except UsageError as error:
            logger.error("not loaded anew, all stays as it was: %s", error)  # noqa: TRY400 - a line, no traceback
        else:
            logger.warning("loaded anew: the modes are %s; %s", ", ".join(serving.modes.by_name), _told_of(serving))
        finally:
            self._task = None
        if self._again:
            self._again = False
            self.begin()


async def reload(serving: Serving) -> None:
    """Profile and keys as they are in their files now; raises UsageError, and changes nothing, where that fails."""
    settings = serving.settings
    folder = await asyncio.to_thread(tokenizer_folder, settings.model)
    profile, keys = await asyncio.to_thread(load_profile_and_keys, folder, settings)
    styles = styles_of(profile.plain)
    try:
        fmt = await asyncio.to_thread(serving.fmt.restyled, folder, settings.chat_template, styles)
        serving.adopt(profile, fmt)
    except (OSError, ValueError) as error:
        raise UsageError(f"the profile cannot be used: {error}") from error
    serving.access.replace(keys)


def load_profile_and_keys(folder: Path, settings: Settings) -> tuple[Profile, KeyFile | None]:
    """As they are in their files now; raises UsageError."""
    profile = load_profile(settings.profile or choose_profile(folder, settings))
    if profile.sampling_of_checkpoint:
        profile = with_sampling(profile, folder)
    keys = keys_of(settings.api_keys, settings.api_key_hashes)
    if keys is not None:
        check_modes(keys, profile.modes)
    return profile, keys


def _told_of(serving: Serving) -> str:
    return f"the keys {', '.join(serving.access.names)}" if serving.access.has_keys else "no keys are needed"


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, so that nobody takes it while the model loads; raises UsageError."""
    return bind_all(host, port, 1)[0]


def bind_all(host: str, port: int, number: int) -> list[socket.socket]:
    """So many sockets of the address, between which the kernel divides connections. Raises UsageError.

    The first takes the port for itself, and shares it only then: a port of another server is not shared with that.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UsageError(f"there is no address {host!r} to listen on") from error
    listeners: list[socket.socket] = []
    try:
        for shares in range(number):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shares:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            if number > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            address = listener.getsockname()
        for listener in listeners:
            listener.listen()
    except OSError as error:
        for listener in listeners:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} on {host} is taken; choose another with --port") from error
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listeners


def tokenizer_folder(model: str) -> Path:
    """Where tokenizer and chat template of a model are; fetches those of a hub id. Raises UsageError."""
    path = Path(model).expanduser()
    return path if path.is_dir() else _fetch_tokenizer(model)


def with_weights(settings: Settings, folder: Path, engine_options: Sequence[str]) -> Settings:
    """With the format that the weights of the checkpoint in `folder` are held in; the engine's environment says it too.

    Raises UsageError where they cannot be held as `--weights` asks, or be shared as `engine_options` ask.
    """
    if not (folder / "config.json").is_file():
        return settings
    try:
        check_heads(read_config(folder), engine_options)
        machine = Machine.detect()
        if settings.weights_asked is None and machine.platform == "cpu":
            settings = replace(settings, weights=default_weights(folder, engine_options, cpu_flags()).weights)
            os.environ[VARIABLE] = settings.weights
        check_weights(folder, settings.model, settings.weights)
        if machine.platform == "cpu":
            available = machine.available_memory * Nodes.of(engine_options).number // settings.data_parallel_size
            check_room(folder, settings.model, settings.weights, available)
        return replace(settings, weights=held_weights(folder, settings.weights, engine_options))
    except ModelError as error:
        raise UsageError(str(error)) from error


def weights_line(settings: Settings, folder: Path, engine_options: Sequence[str]) -> list[str]:
    """How the weights are held, and why, for people; on a GPU, which has no choice, nothing. Raises UsageError."""
    machine = Machine.detect()
    if machine.platform != "cpu" or not (folder / "config.json").is_file():
        return []
    available = machine.available_memory // settings.data_parallel_size
    try:
        asked = settings.weights_asked is not None
        why = "" if asked else default_weights(folder, engine_options, cpu_flags()).reason
        return [start_line(folder, settings.weights, why, available)]
    except ModelError as error:
        raise UsageError(str(error)) from error


def choose_profile(folder: Path, settings: Settings) -> Path:
    """The shipped profile for the checkpoint in `folder`; raises UsageError."""
    try:
        has_config = (folder / "config.json").is_file()  # beside a single GGUF file there may be none
        config = read_config(folder) if has_config else {}
        files = read_template(folder, settings.chat_template)
    except (OSError, ValueError) as error:
        raise UsageError(f"{settings.model} cannot be read: {error}") from error
    return shipped_profile(config.get("model_type", ""), "" if files is None else files.source)


def try_format(folder: Path, profile: Profile, settings: Settings) -> None:
    """Makes the chat format, and a prompt in each mode, in a process of its own; raises UsageError if that dies of it.

    The tokenizers library ends the whole process on some files, in ways that no exception tells of.
    """
    child = os.fork()  # before there are threads
    if child == 0:
        status = 1
        try:
            signal.setitimer(signal.ITIMER_PROF, TRY_SECONDS)
            _try(folder, profile, settings)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == -signal.SIGPROF:
        raise UsageError(f"the tokenizer of {settings.model} cannot be used: reading it takes over {TRY_SECONDS:g} s")
    if status != 0:
        raise UsageError(f"the tokenizer of {settings.model} cannot be used: the tokenizers library fails on its files")


def _try(folder: Path, profile: Profile, settings: Settings) -> None:
    """Errors that can be told are told when the format is made for good."""
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where Rust tells of its panics
    with suppress(UsageError, ValueError):
        fmt = load_format(folder, profile, settings)
        for mode in Modes.of(profile, fmt).by_name.values():
            fmt.decode(fmt.render(TRIED_MESSAGES, mode.style))


def load_format(folder: Path, profile: Profile, settings: Settings) -> ChatFormat:
    """The chat format of the checkpoint in `folder`; raises UsageError."""
    try:
        return ChatFormat.from_folder(folder, profile.format, settings.chat_template, styles_of(profile.plain))
    except FileNotFoundError as error:
        raise UsageError(f"{settings.model} has no tokenizer.json, which the chat format needs") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"tokenizer or chat template of {settings.model} cannot be used: {error}") from error


def _fetch_tokenizer(model: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a second that local models need not wait
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(model, allow_patterns=FETCHED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{model} is neither a folder here nor a model that the hub gives us: {reason}") from error


def configure_logging(console: Console, *, verbose: bool) -> None:
    """On stderr: warnings, or all that the engine and requests have to say."""
    handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S") if sys.stderr.isatty() else None
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s" if handler else "%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[handler] if handler else None,
    )
