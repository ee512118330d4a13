"""The flags of `twogear serve` that say who may use the server: keys, pages of other origins, names of the host."""

import argparse
import os
import re
from collections.abc import MutableMapping
from pathlib import Path

import msgspec

from server.access.keys import hash_of
from server.cli_errors import UsageError
from server.settings import Settings

DEFAULTS = Settings()
KEY_VARIABLES = ("TWOGEAR_API_KEY", "VLLM_API_KEY")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f]*:[0-9a-f]*:[0-9a-f:.]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults come from Settings."""
    group = parser.add_argument_group("who may use the server")
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
    group.add_argument("--no-ui", dest="ui", action="store_false", help="switch the page at / off")


def of_arguments(args: argparse.Namespace, environment: MutableMapping[str, str]) -> dict[str, object]:
    """The settings that these flags and the environment make; the keys leave the environment, and only hashes stay.

    Raises UsageError.
    """
    named = [environment.pop(name, "") for name in KEY_VARIABLES]  # so that no engine process gets them
    secrets = getattr(args, "api_key", None) or [one for one in named if one]
    if not all(secrets):
        raise UsageError("--api-key is empty")
    if args.root_path and (not args.root_path.startswith("/") or args.root_path.endswith("/")):
        raise UsageError(f"--root-path {args.root_path!r} is no path: /llm is")
    return {
        "allowed_origins": tuple(args.allowed_origins or ()),
        "allowed_hosts": tuple(args.allowed_hosts or ()),
        "api_key_hashes": tuple(dict.fromkeys(hash_of(os.fsencode(secret)) for secret in secrets)),
    }


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
