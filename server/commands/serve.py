"""`twogear serve`: its arguments, and the checks that need no engine; `server.launch` runs the server."""

import argparse
from dataclasses import fields
from pathlib import Path

from engine.bytecode import bytecode_folder, keep_bytecode
from engine.checkpoint import ModelError, check_model
from server.cli_errors import UsageError
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
    parser.add_argument("--verbose", action="store_true", help="show the log of the engine and of every request")
    _add_observation(parser.add_argument_group("what is seen of requests"))
    parser.set_defaults(engine_options=[])


def _add_observation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--request-log", metavar="FILE", help="write one JSON line for each request, without its text; - is stderr"
    )
    group.add_argument(
        "--log-text", action="store_true", help="put what is asked and answered into the lines of --request-log"
    )
    group.add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="send OpenTelemetry traces there, as http://127.0.0.1:4318/v1/traces; needs twogear[otel]",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until a signal ends it. Raises UsageError."""
    names = {field.name for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in vars(args).items() if name in names})
    if settings.log_text and settings.request_log is None:
        raise UsageError("--log-text needs --request-log: it says where the lines go")
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
