"""`twogear train STAGE`: trains a recipe's stages, or has a checkpoint learn from rewards, or promotes a run."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli_errors import UsageError
from server.settings import EMBEDDED_MODEL
from training.recipe import Recipe, load

if TYPE_CHECKING:
    import torch

    from training.ranks import Ranks

ALONE = {
    "agapo": "its engine takes the whole policy from one",
    "promote": "it evaluates with one server",
}
HELP = "train a checkpoint from fresh weights, stage by stage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "stage",
        help="all: the recipe's stages in their order; the name of one of them: up to and with that one; agapo: what "
        "the recipe's [agapo] says. What is finished is not done again, and what was interrupted goes on. promote: "
        "evaluates the run in FOLDER and copies its checkpoint to --to, if it reaches the goals",
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="promote: the run")
    parser.add_argument(
        "--recipe", type=Path, default=Path("training/recipes/tiny.toml"), help="what is trained, and how"
    )
    parser.add_argument(
        "--run",
        type=Path,
        help="folder of the run, runs/<name of the recipe>; it goes on from the state.pt there, from any machine",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; all cores where not given")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="trains so many times the recipe's tokens; may change between pieces"
    )
    parser.add_argument("--hours", type=float, help="stops after so long, to go on later")
    promotion = parser.add_argument_group("promote")
    promotion.add_argument("--to", type=Path, default=EMBEDDED_MODEL, help="where the checkpoint goes")
    promotion.add_argument(
        "--even-if-below", action="store_true", help="promotes below the goals too; the card says so"
    )
    promotion.add_argument("--items", type=int, default=1000, help="questions of modes, tools and budgets each")
    promotion.add_argument("--needles", type=int, default=198, help="codes in texts of up to 32K tokens")
    promotion.add_argument("--without-128k", action="store_true", help="leaves out the codes at 128K")
    promotion.add_argument("--seed", type=int, default=2029, help="which questions are drawn")


def run(args: argparse.Namespace) -> int:
    """Runs the stages, alone or with the processes that torchrun started. Raises UsageError for what cannot be run."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        return _run(args, int(os.environ.get("WORLD_SIZE", "1")))
    except UsageError:
        if rank == 0:
            raise
        return 2  # the first process says why


def _run(args: argparse.Namespace, processes: int) -> int:
    if args.stage in ALONE and processes > 1:
        raise UsageError(
            f"{args.stage} is not for {processes} processes: {ALONE[args.stage]}; start it without torchrun"
        )
    if args.stage == "promote":
        return _promote(args)
    if args.folder is not None:
        raise UsageError(f"{args.folder}: a folder goes with promote; --run names the one to train in")
    recipe = _loaded(args.recipe)
    folder: Path = args.run or Path("runs") / args.recipe.stem
    _check(args, recipe)
    from training import stages  # noqa: PLC0415  (torch and transformers take seconds to import)

    device = stages.prepare(args.threads)
    if args.stage == "agapo":
        stages.run_agapo(recipe, folder, device)
        return 0
    from training.ranks import joined  # noqa: PLC0415

    with joined() as ranks:
        return _train(args, recipe, folder, device, ranks)


def _train(args: argparse.Namespace, recipe: Recipe, folder: Path, device: "torch.device", ranks: "Ranks") -> int:
    """The exit code of a run's stages."""
    from training import stages  # noqa: PLC0415
    from training.extend import GateNotPassedError  # noqa: PLC0415
    from training.trainer import StoppedError, Trainer  # noqa: PLC0415

    told, file = f"finished; the checkpoint is in {folder / 'checkpoint'}", sys.stdout
    code = 0
    stopping = stages.Stopping(args.hours)
    with stopping.heeding_signals():
        try:
            trainer = Trainer(recipe, folder, device, scale=args.scale, stop=stopping, ranks=ranks)
            stages.run(trainer, None if args.stage == "all" else args.stage)
        except StoppedError:
            told = f"stopped; the same command goes on from {folder / 'state.pt'}"
            code = 0 if stopping.signal is None else 128 + signal.Signals(stopping.signal)
        except GateNotPassedError as failure:
            told, file, code = f"twogear: not passed: {failure}", sys.stderr, 1
    if ranks.is_first:
        print(told, file=file, flush=True)
    return code


def _promote(args: argparse.Namespace) -> int:
    """Raises UsageError where no run is named, or it is not finished."""
    if args.folder is None:
        raise UsageError("promote which run? `twogear train promote runs/tiny`")
    from training import promote  # noqa: PLC0415  (torch and reasoning-gym take seconds to import)

    amounts = promote.Amounts(args.items, args.needles, longest=not args.without_128k)
    return promote.run_command(args.folder, args.to, seed=args.seed, amounts=amounts, even_if_below=args.even_if_below)


def _loaded(path: Path) -> Recipe:
    try:
        return load(path)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def _check(args: argparse.Namespace, recipe: Recipe) -> None:
    """Raises UsageError where the recipe has no such stage, or there is nothing to start from."""
    if args.scale <= 0:
        raise UsageError("--scale must be more than 0")
    if args.stage == "agapo":
        if recipe.agapo is None:
            raise UsageError(f"{args.recipe} has no part [agapo]")
        if not (Path(recipe.agapo.start) / "config.json").exists():
            raise UsageError(f"{args.recipe}: agapo.start: no checkpoint in {recipe.agapo.start}; train it first")
        return
    names = [stage.name for stage in recipe.stages]
    if args.stage not in ("all", *names):
        raise UsageError(f"{args.recipe} has no stage {args.stage!r}: it has {', '.join(names) or 'none'}")
