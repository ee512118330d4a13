"""AGAPO beside GRPO and continued SFT: `python -m training.agapo.compare RECIPE FOLDER RESULT.json [SEED,SEED,…]`.

First every method is tried at each of its own rates, with a seed of its own; then each runs at its best with every
seed, from the same start, on the same sifted prompts, for the same number of steps of one optimizer, every step on the
same number of sequences. One run follows the other with one engine; those that are finished are not repeated. The
result holds every run's checks; the curves, with their spread over the seeds, are drawn beside it.
"""

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from training.agapo.plot import draw_runs
from training.agapo.rollouts import Engine
from training.agapo.run import AgapoRun
from training.agapo.update import OPTIMIZER
from training.engine import running_engine
from training.recipe import METHODS, AgapoRecipe, Method, load

_SOMEWHAT = (0.3, 0.8)
"""Where the start's pass rate leaves room and gives something to learn from: the families that count."""


async def search(recipe: AgapoRecipe, folder: Path, engine: Engine) -> dict[Method, dict[float, float]]:
    """What each method gains in reasoning mode at each of its rates, in points of one; runs what is not finished yet.

    Where no family leaves room, the gain is that of all in reasoning mode.
    """
    assert recipe.compare is not None
    seed = recipe.compare.search_seed
    gains: dict[Method, dict[float, float]] = {}
    for method in METHODS:
        gains[method] = {}
        for rate in recipe.compare.rates[method]:
            tried = msgspec.structs.replace(
                recipe, method=method, learning_rate=rate, steps=recipe.compare.search_steps
            )
            own = folder / f"search-{seed}" / f"{method}-{rate:g}"
            metrics = await _run(tried, seed, own, engine)
            gain = outcome({method: [metrics]})[method]["reasoning"]
            gains[method][rate] = round(_of_all(metrics) if gain is None else gain, 4)
    return gains


def best(gains: dict[Method, dict[float, float]]) -> dict[Method, float]:
    """The rate at which each method gains most; of several the least."""
    return {method: max(sorted(found), key=found.__getitem__) for method, found in gains.items()}


async def compare(
    recipe: AgapoRecipe, rates: dict[Method, float], seeds: Sequence[int], folder: Path, engine: Engine
) -> dict[Method, list[Path]]:
    """Runs what is not finished yet, each method at its rate; their metrics files, in the order of the seeds."""
    metrics: dict[Method, list[Path]] = {method: [] for method in METHODS}
    for seed in seeds:
        for method in METHODS:
            own = msgspec.structs.replace(recipe, method=method, learning_rate=rates[method])
            metrics[method].append(await _run(own, seed, folder / f"seed-{seed}" / method, engine))
    return metrics


async def _run(recipe: AgapoRecipe, seed: int, own: Path, engine: Engine) -> Path:
    """Trains what is left of one run in its folder; the metrics file."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _share_pool(own.parent, own)
    run = AgapoRun(recipe, seed, own, device)
    if not run.is_finished:
        await engine.reload(Path(recipe.start))
        await run.train(engine)
    return own / "metrics.jsonl"


def _share_pool(seed_folder: Path, own: Path) -> None:
    """The seed's prompts are sifted once: the start answers the same way whatever follows."""
    sifted = next(iter(sorted(seed_folder.glob("*/pool.json"))), None)
    if sifted is not None and sifted.parent != own:
        own.mkdir(parents=True, exist_ok=True)
        shutil.copy(sifted, own / "pool.json")


def checks(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file that hold pass rates, the start's first."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{"step": r["step"], "pass_rate": r["pass_rate"]} for r in records if "pass_rate" in r]


def _of_all(path: Path) -> float:
    """How much the mean pass rate in reasoning mode changed from first to last check."""
    means: list[float] = []
    for check in (checks(path)[0], checks(path)[-1]):
        rates = [rate for key, rate in check["pass_rate"].items() if key.endswith("/reasoning")]
        means.append(sum(rates) / len(rates))
    return means[1] - means[0]


def outcome(metrics: Mapping[Method, Sequence[Path]]) -> dict[Method, dict[str, float | None]]:
    """For each method, how much the pass rates changed from first to last check, as the mean over the seeds.

    `reasoning`: over the families that the start passes at 30 to 80 % (None where there is none), `standard`: over all.
    """
    found: dict[Method, dict[str, float | None]] = {}
    for method, paths in metrics.items():
        gains: dict[str, list[float]] = {"reasoning": [], "standard": []}
        for path in paths:
            first, last = (checks(path)[index]["pass_rate"] for index in (0, -1))
            for key, before in first.items():
                mode = key.rpartition("/")[2]
                if mode == "standard" or _SOMEWHAT[0] <= before <= _SOMEWHAT[1]:
                    gains[mode].append(last[key] - before)
        found[method] = {mode: sum(values) / len(values) if values else None for mode, values in gains.items()}
    return found


def main(recipe_path: Path, folder: Path, result: Path, seeds: Sequence[int]) -> None:
    """Runs the comparison, writes the result and the curves.

    Raises ValueError for a recipe without [agapo.compare], or whose rates would be searched with a seed of `seeds`.
    """
    recipe = load(recipe_path).agapo
    if recipe is None or recipe.compare is None:
        raise ValueError(f"{recipe_path} has no part [agapo.compare]")
    if recipe.compare.search_seed in seeds:
        raise ValueError(f"the rates are searched with seed {recipe.compare.search_seed}: compare with others")

    async def with_engine() -> tuple[dict[Method, dict[float, float]], dict[Method, list[Path]]]:
        async with running_engine(recipe.start) as engine:
            found = await search(recipe, folder, engine)
            return found, await compare(recipe, best(found), seeds, folder, engine)

    gains, metrics = asyncio.run(with_engine())
    content = {
        "what": "agapo compared",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"python -m training.agapo.compare {recipe_path} {folder} {result} {','.join(map(str, seeds))}",
        "recipe": msgspec.to_builtins(recipe),
        "sequences_per_step": {
            method: msgspec.structs.replace(recipe, method=method).sequences_per_step for method in METHODS
        },
        "optimizer": OPTIMIZER,
        "search": {method: {f"{rate:g}": gain for rate, gain in found.items()} for method, found in gains.items()},
        "rates": best(gains),
        "seeds": list(seeds),
        "gain": outcome(metrics),
        "runs": {method: [checks(path) for path in paths] for method, paths in metrics.items()},
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(content, indent=1) + "\n")
    draw_runs({str(method): paths for method, paths in metrics.items()}, result.with_suffix(".svg"))
    print(json.dumps({"rates": content["rates"], "gain": content["gain"]}))


if __name__ == "__main__":
    chosen = sys.argv[4] if len(sys.argv) > 4 else "1,2,3"
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), [int(seed) for seed in chosen.split(",")])
