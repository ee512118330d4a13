"""The training stages by name, each over a recipe and a run's folder."""

from pathlib import Path
from typing import Literal

import torch

from training import tokenizer
from training.agapo.run import AgapoRun
from training.recipe import Recipe
from training.sft import SftRun

Stage = Literal["tokenizer", "sft", "agapo"]


def run(stage: Stage, recipe: Recipe, folder: Path, *, threads: int | None = None) -> None:
    """Runs one stage, on the GPU where there is one; a run that was interrupted goes on from its last state."""
    if stage == "tokenizer":
        tokenizer.save(tokenizer.train(recipe.model.vocabulary_size, recipe.seed), folder)
        return
    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if stage == "agapo":
        assert recipe.agapo is not None
        AgapoRun(recipe.agapo, recipe.seed, folder / recipe.agapo.method, device).run()
        return
    SftRun(recipe, folder, device).run()
