"""`twogear train STAGE --recipe FILE`: runs a training stage."""

import argparse
from pathlib import Path

from server.cli_errors import UsageError
from training.recipe import Recipe, load

HELP = "train a checkpoint, stage by stage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "stage",
        choices=("tokenizer", "pretrain", "sft", "agapo"),
        help="pretrain and sft train the tokenizer too where there is none; sft goes on from pretrain's checkpoint, "
        "if the recipe has that part; agapo learns from rewards, from a finished checkpoint",
    )
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
    if args.stage == "agapo":
        _check_agapo(recipe, args.recipe)
    if args.stage == "pretrain" and recipe.pretrain is None:
        raise UsageError(f"{args.recipe} has no part [pretrain]")
    if args.stage == "sft" and recipe.sft.start is not None and not (Path(recipe.sft.start) / "config.json").exists():
        raise UsageError(f"{args.recipe}: sft.start: there is no checkpoint in {recipe.sft.start}")
    from training import stages  # noqa: PLC0415  (torch and transformers take seconds to import)

    stages.run(args.stage, recipe, args.run or Path("runs") / args.recipe.stem, threads=args.threads)
    return 0


def _check_agapo(recipe: Recipe, path: Path) -> None:
    """Raises UsageError where there is nothing to start from."""
    if recipe.agapo is None:
        raise UsageError(f"{path} has no part [agapo]")
    if not (Path(recipe.agapo.start) / "config.json").exists():
        raise UsageError(f"{path}: agapo.start: there is no checkpoint in {recipe.agapo.start}; train sft first")
