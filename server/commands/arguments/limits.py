"""The flags of `twogear serve` that say how much the server takes on, and vLLM's two that say the same."""

import argparse
import re
from collections.abc import Sequence
from itertools import zip_longest

from server.cli_errors import UsageError
from server.commands.arguments.numbers import above_0, count
from server.settings import Settings

DEFAULTS = Settings()
VLLM_OPTIONS = {"--max-num-queued-reqs": "max_in_flight", "--max-num-queued-tokens": "max_waiting_tokens"}
"""vLLM's API server keeps these limits, its engine does not: here they are the front end's."""
UNITS = {"": 1, **{unit: 1000**power for power, unit in enumerate("kmgt", 1)}}
UNITS |= {unit.upper(): 1024**power for power, unit in enumerate("kmgt", 1)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults come from Settings."""
    group = parser.add_argument_group("limits", "What is beyond them is answered with 503 and Retry-After.")
    group.add_argument(
        "--max-waiting", type=count, metavar="N", default=DEFAULTS.max_waiting,
        help="how many choices may wait for a place in the engine",
    )  # fmt: skip
    group.add_argument(
        "--max-wait-seconds", type=above_0, metavar="S", default=DEFAULTS.max_wait_seconds,
        help="how long a request may wait for its first place",
    )  # fmt: skip
    group.add_argument(
        "--max-committed", type=above_0, metavar="TIMES",
        help="how many times the KV cache may be promised to what runs and waits, as if all became as long as it may; "
        "left out, any number of times",
    )  # fmt: skip


def of_engine_options(options: Sequence[str]) -> dict[str, int]:
    """The settings that vLLM's own options mean; the last one of a name counts. Raises UsageError."""
    found = {}
    for option, following in zip_longest(options, options[1:], fillvalue=""):
        name, _, value = option.partition("=")
        name = name.replace("_", "-")
        if name in VLLM_OPTIONS:
            found[VLLM_OPTIONS[name]] = _vllms_number(name, value or following)
    return found


def _vllms_number(name: str, text: str) -> int:
    """As vLLM reads it: `2k` is 2000 and `2K` is 2048."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)", text)
    if match is None or (match[2].isupper() and "." in match[1]):
        raise UsageError(f"{name} must be a number, such as 100 or 2k; it is {text!r}")
    return int(float(match[1]) * UNITS[match[2]])
