"""The flags of `twogear serve` for the responses that it keeps."""

import argparse

from server.commands.arguments.numbers import count
from server.settings import Settings

DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults come from Settings."""
    group = parser.add_argument_group("stored responses")
    group.add_argument(
        "--max-stored-responses",
        type=count,
        default=DEFAULTS.max_stored_responses,
        metavar="N",
        help="how many responses of /v1/responses are kept for previous_response_id; 0 keeps none",
    )
    group.add_argument(
        "--max-stored-bytes",
        type=count,
        default=DEFAULTS.max_stored_bytes,
        metavar="BYTES",
        help="what these may take in all; those used longest ago leave first",
    )
