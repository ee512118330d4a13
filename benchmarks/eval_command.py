"""`twogear eval`: the command line of the evaluations, which eval_modes.py carries out."""

import argparse
from pathlib import Path

HELP = "measure a running server's accuracy in both modes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "what", choices=("modes",), help="modes: the same held-out items in standard and reasoning mode"
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server")
    parser.add_argument("--items", type=int, default=500, help="questions, each asked in both modes")
    parser.add_argument("--seed", type=int, default=0, help="which questions are drawn")
    parser.add_argument("--families", help="comma-separated; all that the embedded checkpoint knows where not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a dated file under benchmarks/results/ if not given")


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table and writes the result. Raises UsageError."""
    from benchmarks import eval_modes  # noqa: PLC0415  (reasoning-gym takes seconds to import)

    return eval_modes.run(args)
