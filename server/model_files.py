"""What the front end reads of a model before its engine does: tokenizer, chat format, profile, how weights are held."""

import faulthandler
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from chat_templates.checkpoint import read_template
from chat_templates.format import ChatFormat
from engine.checkpoint import ModelError, read_config
from engine.defaults import Machine, Nodes
from engine.weights import check_room, check_weights, default_weights, held_weights, start_line
from model_impl.cpu.native import cpu_flags
from model_impl.weights import VARIABLE
from server.cli_errors import UsageError
from server.modes.mode import TRIED_MESSAGES, Modes
from server.modes.profile import Profile, shipped_profile, styles_of
from server.replicas import check_heads
from server.settings import Settings

FETCHED = ["tokenizer*.json", "config.json", "generation_config.json", "chat_template.*", "hf_quant_config.json"]
TRY_SECONDS = 60.0  # of processor time: a machine may stand still


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
