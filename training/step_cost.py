"""What a step of training costs on CPU: with our kernels, and with PyTorch's operations, in turn in one process.

`python -m training.step_cost` takes steps (forward, backward, optimizer) of a recipe's model on random tokens, of
which half are learnt. Rounds alternate between the two ways, so that a busy machine slows both alike; what is compared
is medians. It uses the cores that its process may run on.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import Exaone4ForCausalLM

from model_impl.cpu.native import SWITCH
from training import memory, native
from training import model as model_files
from training.batches import IGNORED, Batch
from training.optimizer import Optimizer
from training.recipe import load
from training.trainer import forward_loss

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
SHAPES = ((17, 480), (51, 152), (1, 8192))
"""Rows and tokens in each: batches of fine-tuning, of long and of short examples, and a text of context extension."""


def main() -> None:
    """Measures, prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("training/recipes/tiny.toml"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="a dated file under benchmarks/results/ if not given")
    args = parser.parse_args()
    memory.keep()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    recipe = load(args.recipe).model
    model = model_files.build(model_files.build_config(recipe, eos_token_id=2, pad_token_id=0, bos_token_id=1), 0)
    optimizer = Optimizer(model, weight_decay=0.01)
    optimizer.set_rate(1e-4)
    table = [_compare(model, optimizer, _batch(*shape, recipe.vocabulary_size), args.rounds) for shape in SHAPES]
    result = {
        "what": "training_cost",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"python -m training.step_cost --recipe {args.recipe} --rounds {args.rounds}",
        "machine": {"cpu": _cpu(), "threads": torch.get_num_threads(), "load": os.getloadavg()},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "table": table,
    }
    path = args.json or RESULTS / f"training_cost_{torch.get_num_threads()}-cores_{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def _cpu() -> str:
    """As /proc/cpuinfo calls it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


def _batch(rows: int, length: int, vocabulary: int) -> Batch:
    """Random tokens, every second of which is learnt."""
    ids = torch.randint(0, vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(length))
    labels = ids[:, 1:].clone()
    labels[:, ::2] = IGNORED
    return Batch("standard", ids[:, :-1], labels)


def _compare(model: Exaone4ForCausalLM, optimizer: Optimizer, batch: Batch, rounds: int) -> dict[str, Any]:
    """Tokens a second of both ways and their ratio; the first round warms up."""
    samples: dict[str, list[float]] = {"twogear": [], "torch": []}
    for number in range(rounds + 1):
        for kind, taken in samples.items():
            with _kernels(on=kind == "twogear"):
                seconds = _seconds(model, optimizer, batch)
            if number:
                taken.append(batch.ids.numel() / seconds)
    rates = {kind: statistics.median(taken) for kind, taken in samples.items()}
    entry = {"shape": list(batch.ids.shape), **rates, "speedup": rates["twogear"] / rates["torch"], "samples": samples}
    print(
        f"{tuple(batch.ids.shape)}: {rates['twogear']:,.0f} tokens/s, {rates['torch']:,.0f}: {entry['speedup']:.2f} x"
    )
    return entry


def _seconds(model: Exaone4ForCausalLM, optimizer: Optimizer, batch: Batch) -> float:
    """Of one step."""
    started = time.perf_counter()
    loss, _ = forward_loss(model, batch)
    loss.backward()
    optimizer.step()
    return time.perf_counter() - started


@contextmanager
def _kernels(*, on: bool) -> Iterator[None]:
    """Switches our kernels on or off."""
    os.environ[SWITCH] = "1" if on else "0"
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()
    del os.environ[SWITCH]


if __name__ == "__main__":
    main()
