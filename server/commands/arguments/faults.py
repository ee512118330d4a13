"""The flags of `twogear serve` for an engine that hangs and for the server's end."""

import argparse

from server.commands.arguments.numbers import seconds
from server.settings import Settings

DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults come from Settings."""
    group = parser.add_argument_group("faults and the end")
    group.add_argument(
        "--engine-timeout",
        type=seconds,
        metavar="SECONDS",
        default=DEFAULTS.engine_timeout,
        help="the longest that a step may take before the engine is killed and started again",
    )
    group.add_argument(
        "--drain-seconds",
        type=seconds,
        metavar="SECONDS",
        default=DEFAULTS.drain_seconds,
        help="how long running requests may go on after SIGTERM",
    )
