"""The training stages by name, each over a recipe and a run's folder."""

import math
from pathlib import Path
from typing import Literal

import msgspec
import torch

from training import memory, tokenizer
from training.agapo.run import AgapoRun
from training.recipe import Recipe
from training.sft import SftRun

Stage = Literal["tokenizer", "pretrain", "sft", "agapo"]


def run(stage: Stage, recipe: Recipe, folder: Path, *, threads: int | None = None) -> None:
    """Runs one stage, on the GPU where there is one; a run that was interrupted goes on from its last state."""
    if stage == "tokenizer":
        tokenizer.save(tokenizer.train(recipe.model.vocabulary_size, recipe.seed), folder)
        return
    memory.keep()
    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if stage == "agapo":
        assert recipe.agapo is not None
        AgapoRun(recipe.agapo, recipe.seed, folder / recipe.agapo.method, device).run()
        return
    pretrained = folder / "pretrain" / "checkpoint"
    if stage == "pretrain":
        SftRun(_pretraining(recipe, pretrained), folder / "pretrain", device).run()
        return
    if recipe.pretrain is not None:
        recipe = msgspec.structs.replace(recipe, sft=msgspec.structs.replace(recipe.sft, start=str(pretrained)))
    SftRun(recipe, folder, device).run()


def _pretraining(recipe: Recipe, output: Path) -> Recipe:
    """Pretraining as the loop of fine-tuning knows it: the easiest examples throughout, and every token learnt."""
    assert recipe.pretrain is not None
    own = msgspec.structs.asdict(recipe.pretrain)
    sft = msgspec.structs.replace(recipe.sft, start=None, learns="everything", curriculum=math.inf, **own)
    return msgspec.structs.replace(recipe, output=str(output), sft=sft)
