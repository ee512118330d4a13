"""`twogear train STAGE --recipe FILE`: runs a training stage."""

import argparse
from pathlib import Path

from server.cli_errors import UsageError
from training.recipe import load

HELP = "train a checkpoint, stage by stage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("stage", choices=("tokenizer", "sft"), help="sft trains the tokenizer too where there is none")
    parser.add_argument(
        "--recipe", type=Path, default=Path("training/recipes/tiny.toml"), help="what is trained, and how"
    )
    parser.add_argument(
        "--run", type=Path, help="folder of state and metrics, runs/<name of the recipe>; resumes there"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; all cores where not given")


def run(args: argparse.Namespace) -> int:
    """Runs the stage. Raises UsageError for a recipe that cannot be read."""
    try:
        recipe = load(args.recipe)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    from training import stages  # noqa: PLC0415  (torch and transformers take seconds to import)

    stages.run(args.stage, recipe, args.run or Path("runs") / args.recipe.stem, threads=args.threads)
    return 0
