"""Some steps of training in each of the processes that torchrun starts: `-m tests.training.rank_steps FOLDER RECIPE`.

In float32 throughout, so that sums in another order are all that may differ from one process.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from training import recipe as recipes
from training import trainer as trainer_file
from training.batches import IGNORED, Batch
from training.ranks import Ranks, joined
from training.trainer import Trainer

STEPS = 3


def batch(rows: int, length: int, seed: int) -> Batch:
    """Random tokens; rows learn different numbers of them."""
    ids = torch.randint(20, 600, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    labels = ids[:, 1:].clone()
    for row in range(rows):
        labels[row, : (row + 1) * 3] = IGNORED
    return Batch("standard", ids[:, :-1], labels)


def batches(step: int) -> list[Batch]:
    """Of several rows, of an odd number, of one each, which are dealt out whole, and of one alone."""
    return [[batch(4, 96, 1)], [batch(3, 80, 2), batch(5, 24, 3)], [batch(1, 96, n) for n in (4, 5, 6)]][step]


def steps(trainer: Trainer) -> dict[str, Any]:
    """The losses, and the first step's whole gradients."""
    trainer.backward([batch(1, 40, 7)])
    trainer.backward(batches(0))
    gradients = {name: trainer.ranks.gathered(one.grad) for name, one in trainer.model.named_parameters()}
    trainer.optimizer.step()
    return {"gradients": gradients, "losses": [trainer.step({"loss": batches(step)}, 1e-3) for step in range(STEPS)]}


def held(trainer: Trainer) -> dict[str, int]:
    """Bytes that this process has of the weights, their gradients, and the optimizer's states."""
    trainer.backward(batches(0))
    parameters = list(trainer.model.parameters())
    state = trainer.optimizer.state_dict()
    states = [one for part in state.values() for of in part["state"].values() for one in of.values() if one.ndim]
    gradients = [one.grad for one in parameters if one.grad is not None]
    return {"weights": size(parameters), "gradients": size(gradients), "states": size(states)}


def size(tensors: list[Any]) -> int:
    """Bytes of what lies here."""
    return sum((one.to_local() if isinstance(one, DTensor) else one).nbytes for one in tensors)


def run(folder: Path, recipe: Path, ranks: Ranks) -> tuple[Trainer, dict[str, Any]]:
    """A trainer after its steps, and what they gave."""
    trainer_file.torch.autocast = lambda *_: nullcontext()  # type: ignore[attr-defined]
    trainer = Trainer(recipes.load(recipe), folder, torch.device("cpu"), ranks=ranks)
    return trainer, steps(trainer)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    with joined() as together:
        trained, found = run(where, Path(sys.argv[2]), together)
        weights = together.gathered(trained.model.state_dict())
        if together.is_first:
            torch.save({**found, "weights": weights}, where / "steps.pt")
        (where / f"held-{together.rank}.json").write_text(json.dumps(held(trained)))
