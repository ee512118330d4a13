"""The training stages by name, each over a recipe and a run's folder; and all of them in turn."""

import math
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import torch

from training import memory, tokenizer
from training.agapo.run import AgapoRun
from training.extend import ExtendRun
from training.recipe import Recipe
from training.sft import SftRun

Stage = Literal["tokenizer", "pretrain", "sft", "extend", "agapo", "all"]


class Run(Protocol):
    """What is needed of a stage's run."""

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""

    def run(self) -> None:
        """Trains what is left and exports the checkpoint."""


def run(stage: Stage, recipe: Recipe, folder: Path, *, threads: int | None = None) -> None:
    """Runs one stage, on the GPU where there is one; a run that was interrupted goes on from its last state.

    `all` runs those that the recipe has, without those that are finished. Raises extend.GateNotPassedError.
    """
    if stage == "tokenizer":
        tokenizer.save(tokenizer.train(recipe.model.vocabulary_size, recipe.seed), folder)
        return
    memory.keep()
    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if stage != "all":
        _begin(stage, recipe, folder, device).run()
        return
    for one, output in outputs(recipe, folder).items():
        begun = _begin(one, recipe, folder, device)
        if begun.is_finished and (output / "config.json").exists():
            print(f"{one}: finished, its checkpoint is in {output}")
        else:
            begun.run()


def outputs(recipe: Recipe, folder: Path) -> dict[Stage, Path]:
    """The stages that a recipe has, in their order, and where each leaves its checkpoint."""
    found: dict[Stage, Path] = {}
    if recipe.pretrain is not None:
        found["pretrain"] = folder / "pretrain" / "checkpoint"
    found["sft"] = Path(recipe.output)
    if recipe.extend is not None:
        found["extend"] = Path(recipe.extend.output)
    if recipe.agapo is not None:
        found["agapo"] = Path(recipe.agapo.output)
    return found


def _begin(stage: Stage, recipe: Recipe, folder: Path, device: torch.device) -> Run:
    """The stage's run as it stands in its folder."""
    pretrained = folder / "pretrain" / "checkpoint"
    match stage:
        case "agapo":
            assert recipe.agapo is not None
            return AgapoRun(recipe.agapo, recipe.seed, folder / recipe.agapo.method, device)
        case "extend":
            return ExtendRun(recipe, folder / "extend", device)
        case "pretrain":
            return SftRun(_pretraining(recipe, pretrained), folder / "pretrain", device)
    if recipe.pretrain is not None:
        recipe = msgspec.structs.replace(recipe, sft=msgspec.structs.replace(recipe.sft, start=str(pretrained)))
    return SftRun(recipe, folder, device)


def _pretraining(recipe: Recipe, output: Path) -> Recipe:
    """Pretraining as the loop of fine-tuning knows it: the easiest examples throughout, and every token learnt."""
    assert recipe.pretrain is not None
    own = msgspec.structs.asdict(recipe.pretrain)
    sft = msgspec.structs.replace(recipe.sft, start=None, learns="everything", curriculum=math.inf, **own)
    return msgspec.structs.replace(recipe, output=str(output), sft=sft)
