"""The flags of `twogear serve` that bound what one client may take of time, memory and the other clients."""

import argparse

from server.commands.arguments.numbers import positive, seconds
from server.settings import Settings

DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults come from Settings."""
    group = parser.add_argument_group("connections", "what a client may take, of time, memory and other clients")
    group.add_argument(
        "--max-connections", type=positive, metavar="N", default=DEFAULTS.max_connections, help="the most open at once"
    )
    group.add_argument(
        "--max-connections-per-address",
        type=positive,
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
        group.add_argument(f"--{flag}", type=seconds, metavar="SECONDS", default=default, help=f"the longest {text}")
    for flag, text in (
        ("max-body-bytes", "of one request"),
        ("max-bodies-bytes", "of all long requests that are coming in"),
        ("max-parsed-bytes", "that the bodies of long requests may take once they are read"),
        ("max-response-bytes", "that the log-probabilities of one response may take until it is whole"),
    ):
        default = getattr(DEFAULTS, flag.replace("-", "_"))
        group.add_argument(f"--{flag}", type=positive, metavar="N", default=default, help=f"the most bytes {text}")
    group.add_argument(
        "--isolate-keys",
        action="store_true",
        help="keep the prefix cache apart for each API key: cached_tokens then tells nothing of others' texts",
    )
    group.add_argument(
        "--no-remember-generated",
        dest="remember_generated",
        action="store_false",
        help="tokenize answers that come back afresh, however the model wrote them, and fill in no thinking left out",
    )
