"""`twogear eval`: the command line of the evaluations, each of which a module of its name carries out."""

import argparse
from importlib import import_module
from pathlib import Path

from server.cli_errors import UsageError
from server.urls import server_url

HELP = (
    "measure a running server: both modes, choosing between them, early ends of thoughts, thinking budgets, tools and "
    "JSON, needles in long texts, loops"
)

_WHAT = {
    "modes": "the same held-out questions in standard and reasoning mode",
    "auto": "what a mode of kind auto would come to with each signal and threshold, from answers drawn in both modes",
    "early": "thoughts ended once trial answers agree and are confident: tokens at 99 %% of the accuracy",
    "budgets": "the same questions with growing thinking budgets, beside stopping without an answer",
    "tools": "tool calls and JSON answers in both modes",
    "needles": "codes to be found in texts of growing length, at every depth, in standard mode",
    "loops": "thoughts that repeat themselves, and whether the rule for them closes others too",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    meaning = "; ".join(f"{name}: {text}" for name, text in _WHAT.items())
    parser.add_argument("what", choices=tuple(_WHAT), help=meaning)
    parser.add_argument(
        "--url", type=server_url, default="http://127.0.0.1:8000", help="the server, with /v1 or without"
    )
    parser.add_argument("--items", type=int, default=500, help="questions, each asked in both modes or at each budget")
    parser.add_argument("--seed", type=int, default=0, help="which questions are drawn")
    parser.add_argument(
        "--families",
        help="comma-separated; where not given, all that the embedded checkpoint knows, "
        "of needles single,distractors,several (there is also variables)",
    )
    parser.add_argument(
        "--lengths",
        help="of needles: tokens of the texts, comma-separated, such as 1K,128K; "
        "1K to 32K as far as the context reaches where not given",
    )
    parser.add_argument(
        "--most-tokens",
        type=int,
        help="of modes, auto, early, budgets and loops: thought and answer at most; where not given, the server's own "
        "limits, for loops 6000",
    )
    parser.add_argument(
        "--level", type=int, help="of auto: how hard the questions are, from 0; as hard as they get where not given"
    )
    parser.add_argument("--every", type=int, help="of early: tokens from one trial to the next; 32 where not given")
    parser.add_argument("--trials", type=int, help="of auto: so many other drafts at random, whether they agree")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="of auto: with what the mode of kind auto of this profile comes to"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes; to no file if not given")


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table and writes the result. Raises UsageError."""
    if args.lengths is not None and args.what != "needles":
        raise UsageError(f"--lengths goes with needles, not with {args.what}")
    if args.most_tokens is not None and args.what not in ("modes", "auto", "early", "budgets", "loops"):
        raise UsageError(f"--most-tokens goes with modes, auto, early, budgets and loops, not with {args.what}")
    if args.level is not None and (args.what != "auto" or args.level < 0):
        raise UsageError(f"--level is 0 or more, and goes with auto, not with {args.what}")
    if args.every is not None and args.what != "early":
        raise UsageError(f"--every goes with early, not with {args.what}")
    for name in ("trials", "profile"):
        if getattr(args, name) is not None and args.what != "auto":
            raise UsageError(f"--{name} goes with auto, not with {args.what}")
    return int(import_module(f"evals.{args.what}").run(args))  # reasoning-gym takes seconds to import
