"""`twogear serve`: its arguments, and the checks that need no engine; `server.launch` runs the server."""

import argparse
from dataclasses import fields
from pathlib import Path

from engine.bytecode import bytecode_folder, keep_bytecode
from engine.checkpoint import ModelError, check_model
from server.cli_errors import UsageError
from server.commands import limits
from server.settings import Settings

HELP = "serve a model over an OpenAI-compatible HTTP API"
DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults come from Settings."""
    parser.usage = "twogear serve [MODEL] [options] [-- ENGINE OPTIONS]"
    parser.epilog = (
        "After --, any engine option of vLLM goes through unchanged, for example: "
        "twogear serve LGAI-EXAONE/EXAONE-4.0-1.2B -- --dtype bfloat16 --max-model-len 32768"
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", default=DEFAULTS.model, help="a local folder or a hub id")
    parser.add_argument("--host", default=DEFAULTS.host, help="the address to listen on")
    parser.add_argument("--port", type=_port, default=DEFAULTS.port, help="the port to listen on; 0 takes a free one")
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
    parser.add_argument("--allow-priority", action="store_true", help="let clients set the priority of their requests")
    stored = parser.add_argument_group("stored responses")
    stored.add_argument(
        "--max-stored-responses",
        type=_count,
        default=DEFAULTS.max_stored_responses,
        metavar="N",
        help="how many responses of /v1/responses are kept for previous_response_id; 0 keeps none",
    )
    stored.add_argument(
        "--max-stored-bytes",
        type=_count,
        default=DEFAULTS.max_stored_bytes,
        metavar="BYTES",
        help="what these may take in all; those used longest ago leave first",
    )
    parser.add_argument("--verbose", action="store_true", help="show the log of the engine and of every request")
    limits.add_arguments(parser)
    parser.set_defaults(engine_options=[])


def run(args: argparse.Namespace) -> int:
    """Serves until a signal ends it. Raises UsageError."""
    names = {field.name for field in fields(Settings)}
    chosen = {name: value for name, value in vars(args).items() if name in names}
    settings = Settings(**chosen | limits.of_engine_options(args.engine_options))
    try:
        check_model(settings.model)
    except ModelError as error:
        raise UsageError(str(error)) from error
    if (folder := bytecode_folder()) is not None:
        keep_bytecode(folder)
    from server.launch import launch  # noqa: PLC0415 - the web stack takes half a second that --help does not need

    return launch(settings, args.engine_options)


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535 is")
    return port


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return int(text)
