"""`twogear serve`: its arguments, and the checks that need no engine; `server.launch` runs the server."""

import argparse
import os
from collections.abc import MutableMapping
from dataclasses import fields
from pathlib import Path

from engine.bytecode import bytecode_folder, keep_bytecode
from engine.checkpoint import ModelError, check_model
from engine.defaults import Nodes, engine_defaults
from server.cli_errors import UsageError
from server.commands.arguments import (
    access,
    adapters,
    connections,
    faults,
    gguf,
    limits,
    observation,
    replicas,
    stored,
    tls,
    weights,
)
from server.commands.arguments.numbers import port
from server.commands.arguments.objects import json_object
from server.settings import Settings

HELP = "serve a model over an OpenAI-compatible HTTP API"
DEFAULTS = Settings()
REASONING_FIELDS = {
    "both": DEFAULTS.reasoning_fields,
    **{name: (name,) for name in DEFAULTS.reasoning_fields},
}
"""From each choice of `--reasoning-field` to the names that it stands for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults come from Settings."""
    parser.usage = "twogear serve [MODEL] [options] [-- ENGINE OPTIONS]"
    parser.epilog = (
        "After --, any engine option of vLLM goes through unchanged, for example: "
        "twogear serve LGAI-EXAONE/EXAONE-4.0-1.2B -- --dtype bfloat16 --max-model-len 32768"
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", default=DEFAULTS.model, help="a local folder, a GGUF file or a hub id"
    )
    parser.add_argument("--host", default=DEFAULTS.host, help="the address to listen on")
    parser.add_argument("--port", type=port, default=DEFAULTS.port, help="the port to listen on; 0 takes a free one")
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="the model's name for clients; left out, the folder's or the hub's"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="what the modes mean, as TOML; left out, as the model's makers advise",
    )
    parser.add_argument(
        "--chat-template", type=Path, metavar="FILE", help="a jinja template to use instead of the checkpoint's own"
    )
    parser.add_argument(
        "--default-chat-template-kwargs",
        type=json_object,
        metavar="JSON",
        default={},
        help="what chat templates are told where a request says nothing else, as vLLM has it; enable_thinking sets the "
        "default mode",
    )
    parser.add_argument("--allow-priority", action="store_true", help="let clients set the priority of their requests")
    parser.add_argument(
        "--reasoning-field",
        choices=tuple(REASONING_FIELDS),
        default="both",
        help="under which name chat completions show the thinking",
    )
    parser.add_argument(
        "--show-defaults",
        action="store_true",
        help="print the engine options chosen for this machine, and why; start nothing",
    )
    parser.add_argument("--verbose", action="store_true", help="show the log of the engine and of every request")
    for group in (weights, replicas, stored, adapters, limits, access, tls, faults, connections, observation):
        group.add_arguments(parser)
    parser.set_defaults(engine_options=[])


def run(args: argparse.Namespace) -> int:
    """Serves until a signal ends it. Raises UsageError."""
    settings = gguf.opened(settings_of(args, os.environ))
    try:
        check_model(settings.model)
    except ModelError as error:
        raise UsageError(str(error)) from error
    chosen = adapters.engine_choices(args, settings)
    options = [*adapters.as_options(chosen), *args.engine_options]
    if args.show_defaults:
        for choice in [*engine_defaults(settings.model, options), *chosen]:
            print(f"{choice.name} {choice.value}: {choice.reason}")
        return 0
    if (folder := bytecode_folder()) is not None:
        keep_bytecode(folder)
    if Nodes.of(options).rank > 0:
        from server.follower import follow  # noqa: PLC0415 - as below

        return follow(settings, options)
    from server.launch import launch  # noqa: PLC0415 - the web stack takes half a second that --help does not need

    return launch(settings, options)


def settings_of(args: argparse.Namespace, environment: MutableMapping[str, str]) -> Settings:
    """The settings that arguments and environment make. Of keys only hashes stay, in the environment neither.

    Raises UsageError.
    """
    of_access = access.of_arguments(args, environment)
    tls.check(args)
    observation.check(args)
    names = {field.name for field in fields(Settings)}
    given = {name: value for name, value in vars(args).items() if name in names}
    given |= of_access | limits.of_engine_options(args.engine_options)
    given |= weights.of_arguments(args, environment)
    given["reasoning_fields"] = REASONING_FIELDS[args.reasoning_field]
    given |= adapters.of_arguments(args, environment)
    settings = Settings(**given)
    adapters.check(settings)
    return settings
