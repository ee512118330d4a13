"""`twogear serve`: its arguments, and the checks that need no engine; `server.launch` runs the server."""

import argparse
import math
import os
import re
from collections.abc import MutableMapping
from dataclasses import fields
from pathlib import Path

import msgspec

from engine.bytecode import bytecode_folder, keep_bytecode
from engine.checkpoint import ModelError, check_model
from engine.defaults import engine_defaults
from server.access.keys import hash_of
from server.cli_errors import UsageError
from server.commands import limits
from server.settings import Settings

HELP = "serve a model over an OpenAI-compatible HTTP API"
DEFAULTS = Settings()
KEY_VARIABLES = ("TWOGEAR_API_KEY", "VLLM_API_KEY")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f]*:[0-9a-f]*:[0-9a-f:.]*")
MOST_DIGITS = 16  # of a count
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
    _add_access_arguments(parser.add_argument_group("who may use the server"))
    _add_tls_arguments(parser.add_argument_group("TLS, as uvicorn has it"))
    faults = parser.add_argument_group("faults and the end")
    faults.add_argument(
        "--engine-timeout",
        type=_seconds,
        metavar="SECONDS",
        default=DEFAULTS.engine_timeout,
        help="the longest that a step may take before the engine is killed and started again",
    )
    faults.add_argument(
        "--drain-seconds",
        type=_seconds,
        metavar="SECONDS",
        default=DEFAULTS.drain_seconds,
        help="how long running requests may go on after SIGTERM",
    )
    _add_connections(parser)
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


def _add_access_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--api-keys", type=Path, metavar="FILE", help="the API keys and what each may use, as TOML (twogear keys)"
    )
    group.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="a key that may use everything; other users of the machine can see it in the list of processes, which is "
        "why the environment's TWOGEAR_API_KEY or VLLM_API_KEY is better",
    )
    group.add_argument(
        "--allowed-origins",
        type=origins,
        action="extend",
        metavar="ORIGINS",
        help="web pages that may use the server: origins with commas between them or as a JSON list; * for all",
    )
    group.add_argument(
        "--allowed-hosts",
        type=hosts,
        action="extend",
        metavar="NAMES",
        help="names by which the server may be called beside localhost and its address, with commas between them",
    )
    group.add_argument(
        "--root-path", default=DEFAULTS.root_path, metavar="PATH", help="where a proxy serves the server"
    )
    group.add_argument(
        *("--no-docs", "--disable-fastapi-docs"),
        dest="docs",
        action="store_false",
        help="switch /docs, /redoc and /openapi.json off",
    )


def _add_tls_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--ssl-keyfile", type=Path, metavar="FILE", help="the certificate's key, as PEM")
    group.add_argument("--ssl-certfile", type=Path, metavar="FILE", help="the certificate, as PEM")
    group.add_argument("--ssl-keyfile-password", metavar="TEXT", help="of an encrypted key")
    group.add_argument("--ssl-ca-certs", type=Path, metavar="FILE", help="authorities of clients' certificates, as PEM")
    group.add_argument(
        "--ssl-cert-reqs",
        type=int,
        choices=(0, 1, 2),
        default=DEFAULTS.ssl_cert_reqs,
        help="whether clients need a certificate: 0 no, 1 they may have one, 2 yes",
    )
    group.add_argument("--ssl-ciphers", metavar="TEXT", help="in OpenSSL's notation")


def origins(text: str) -> tuple[str, ...]:
    """The origins in an argument, as vLLM takes them (a JSON list), or with commas between them."""
    found = _parts(text)
    for origin in found:
        if origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
            raise argparse.ArgumentTypeError(
                f"{origin!r} is no origin: https://example.com and http://localhost:3000 are"
            )
    return found


def hosts(text: str) -> tuple[str, ...]:
    """The host names in an argument, without ports."""
    found = tuple(name.lower() for name in _parts(text))
    for name in found:
        if not HOST.fullmatch(name):
            raise argparse.ArgumentTypeError(f"{name!r} is no name of a host: server.example is, without a port")
    return found


def _parts(text: str) -> tuple[str, ...]:
    """Of a JSON list of texts, or of a text with commas."""
    if not text.lstrip().startswith("["):
        return tuple(part.strip() for part in text.split(","))
    try:
        return msgspec.json.decode(text, type=tuple[str, ...])
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON list of texts: {error}") from error


def _add_connections(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("connections", "what a client may take, of time, memory and other clients")
    group.add_argument(
        "--max-connections", type=_positive, metavar="N", default=DEFAULTS.max_connections, help="the most open at once"
    )
    group.add_argument(
        "--max-connections-per-address",
        type=_positive,
        metavar="N",
        default=DEFAULTS.max_connections_per_address,
        help="the most of one address; from this machine, where proxies are, there may be any number",
    )
    for flag, text in (
        ("header-timeout", "for a request's head, and for a new connection's first byte"),
        ("body-timeout", "for a request's body, and one more for each 64 KiB of it"),
        ("stall-seconds", "for a client to read on in its answer"),
    ):
        default = getattr(DEFAULTS, flag.replace("-", "_"))
        group.add_argument(f"--{flag}", type=_seconds, metavar="SECONDS", default=default, help=f"the longest {text}")
    for flag, text in (
        ("max-body-bytes", "of one request"),
        ("max-bodies-bytes", "of all long requests that are coming in"),
        ("max-parsed-bytes", "that the bodies of long requests may take once they are read"),
        ("max-response-bytes", "that the log-probabilities of one response may take until it is whole"),
    ):
        default = getattr(DEFAULTS, flag.replace("-", "_"))
        group.add_argument(f"--{flag}", type=_positive, metavar="N", default=default, help=f"the most bytes {text}")
    group.add_argument(
        "--isolate-keys",
        action="store_true",
        help="keep the prefix cache apart for each API key: cached_tokens then tells nothing of others' texts",
    )
    group.add_argument(
        "--no-remember-generated",
        dest="remember_generated",
        action="store_false",
        help="tokenize answers that come back afresh, however the model wrote them",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until a signal ends it. Raises UsageError."""
    settings = settings_of(args, os.environ)
    try:
        check_model(settings.model)
    except ModelError as error:
        raise UsageError(str(error)) from error
    if args.show_defaults:
        for choice in engine_defaults(settings.model, args.engine_options):
            print(f"{choice.name} {choice.value}: {choice.reason}")
        return 0
    if (folder := bytecode_folder()) is not None:
        keep_bytecode(folder)
    from server.launch import launch  # noqa: PLC0415 - the web stack takes half a second that --help does not need

    return launch(settings, args.engine_options)


def settings_of(args: argparse.Namespace, environment: MutableMapping[str, str]) -> Settings:
    """The settings that arguments and environment make. Of keys only hashes stay, in the environment neither.

    Raises UsageError.
    """
    named = [environment.pop(name, "") for name in KEY_VARIABLES]  # so that no engine process gets them
    secrets = getattr(args, "api_key", None) or [one for one in named if one]
    if not all(secrets):
        raise UsageError("--api-key is empty")
    if (args.ssl_keyfile is None) != (args.ssl_certfile is None):
        raise UsageError("TLS needs both --ssl-keyfile and --ssl-certfile")
    if args.root_path and (not args.root_path.startswith("/") or args.root_path.endswith("/")):
        raise UsageError(f"--root-path {args.root_path!r} is no path: /llm is")
    names = {field.name for field in fields(Settings)}
    given = {name: value for name, value in vars(args).items() if name in names}
    for name in ("allowed_origins", "allowed_hosts"):
        given[name] = tuple(given[name] or ())
    given |= limits.of_engine_options(args.engine_options)
    given["api_key_hashes"] = tuple(dict.fromkeys(hash_of(os.fsencode(secret)) for secret in secrets))
    given["reasoning_fields"] = REASONING_FIELDS[args.reasoning_field]
    settings = Settings(**given)
    if settings.log_text and settings.request_log is None:
        raise UsageError("--log-text needs --request-log: it says where the lines go")
    return settings


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() and len(text) < MOST_DIGITS else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return number


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535 is")
    return port


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: a number of seconds above 0 is")
    return seconds
