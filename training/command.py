"""`twogear train STAGE --recipe FILE`: runs a training stage."""

import argparse
import sys
from pathlib import Path

from server.cli_errors import UsageError
from training.recipe import Recipe, load

HELP = "train a checkpoint, stage by stage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "stage",
        choices=("tokenizer", "pretrain", "sft", "extend", "agapo", "all"),
        help="pretrain and sft train the tokenizer too where there is none; sft goes on from pretrain's checkpoint, "
        "if the recipe has that part; extend teaches a finished checkpoint long texts, until it passes the needle "
        "test; agapo has one learn from rewards; all: those that the recipe has and that are not finished, in turn",
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
    folder: Path = args.run or Path("runs") / args.recipe.stem
    _check(args.stage, recipe, args.recipe, folder)
    from training import stages  # noqa: PLC0415  (torch and transformers take seconds to import)
    from training.extend import GateNotPassedError  # noqa: PLC0415

    try:
        stages.run(args.stage, recipe, folder, threads=args.threads)
    except GateNotPassedError as failure:
        print(f"twogear: not passed: {failure}", file=sys.stderr)
        return 1
    return 0


def _check(stage: str, recipe: Recipe, path: Path, folder: Path) -> None:
    """Raises UsageError where the recipe has no such stage, or there is nothing to start from."""
    parts = {"pretrain": recipe.pretrain, "extend": recipe.extend, "agapo": recipe.agapo}
    if stage in parts and parts[stage] is None:
        raise UsageError(f"{path} has no part [{stage}]")
    if stage in ("sft", "all") and recipe.sft.start is not None:
        _check_start(path, "sft.start", recipe.sft.start)
    if stage == "sft" and recipe.pretrain is not None:
        _check_start(path, "pretrain", str(folder / "pretrain" / "checkpoint"))
    elif stage == "extend" and recipe.extend is not None:
        _check_start(path, "extend.start", recipe.extend.start)
    elif stage == "agapo" and recipe.agapo is not None:
        _check_start(path, "agapo.start", recipe.agapo.start)


def _check_start(path: Path, what: str, start: str) -> None:
    if not (Path(start) / "config.json").exists():
        raise UsageError(f"{path}: {what}: there is no checkpoint in {start}; train it first")
