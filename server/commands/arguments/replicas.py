"""The flags of `twogear serve` for several engines and several front ends."""

import argparse

from server.commands.arguments.numbers import positive
from server.settings import Settings

DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults come from Settings."""
    group = parser.add_argument_group("replicas")
    group.add_argument(
        "--data-parallel-size",
        type=positive,
        metavar="N",
        default=DEFAULTS.data_parallel_size,
        help="so many engines, each with its part of the cores, or with GPUs of its own",
    )
    group.add_argument(
        "--api-server-count",
        type=positive,
        metavar="N",
        default=DEFAULTS.api_server_count,
        help="so many processes that speak HTTP, all on one port; 1: the server itself does",
    )
