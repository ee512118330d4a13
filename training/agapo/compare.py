"""AGAPO beside GRPO and continued SFT: `python -m training.agapo.compare RECIPE FOLDER RESULT.json [SEED,SEED,…]`.

Every method runs with every seed, from the same start, on the same sifted prompts, for the same number of steps, one
after the other with one engine; runs that are finished are not repeated. The result holds every run's checks; the
curves, with their spread over the seeds, are drawn beside it.
"""

import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from training.agapo.plot import draw_runs
from training.agapo.rollouts import Engine
from training.agapo.run import AgapoRun
from training.engine import running_engine
from training.recipe import METHODS, AgapoRecipe, load

_SOMEWHAT = (0.3, 0.8)
"""Where the start's pass rate leaves room and gives something to learn from: the families that count."""


async def compare(recipe: AgapoRecipe, seeds: Sequence[int], folder: Path, engine: Engine) -> dict[str, list[Path]]:
    """Runs what is not finished yet; every method's metrics files, in the order of the seeds."""
    metrics: dict[str, list[Path]] = {method: [] for method in METHODS}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for seed in seeds:
        for method in METHODS:
            own = folder / f"seed-{seed}" / method
            _share_pool(folder / f"seed-{seed}", own)
            run = AgapoRun(msgspec.structs.replace(recipe, method=method), seed, own, device)
            if not run.is_finished:
                await engine.reload(Path(recipe.start))
                await run.train(engine)
            metrics[method].append(own / "metrics.jsonl")
    return metrics


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


def outcome(metrics: dict[str, list[Path]]) -> dict[str, dict[str, float | None]]:
    """For each method, how much the pass rates changed from first to last check, as the mean over the seeds.

    `reasoning`: over the families that the start passes at 30 to 80 % (None where there is none), `standard`: over all.
    """
    found: dict[str, dict[str, float | None]] = {}
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
    """Runs the comparison, writes the result and the curves. Raises ValueError for a recipe without [agapo]."""
    recipe = load(recipe_path).agapo
    if recipe is None:
        raise ValueError(f"{recipe_path} has no part [agapo]")

    async def with_engine() -> dict[str, list[Path]]:
        async with running_engine(recipe.start) as engine:
            return await compare(recipe, seeds, folder, engine)

    metrics = asyncio.run(with_engine())
    content = {
        "what": "agapo compared",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"python -m training.agapo.compare {recipe_path} {folder} {result} {','.join(map(str, seeds))}",
        "recipe": msgspec.to_builtins(recipe),
        "seeds": list(seeds),
        "gain": outcome(metrics),
        "runs": {method: [checks(path) for path in paths] for method, paths in metrics.items()},
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(content, indent=1) + "\n")
    draw_runs(metrics, result.with_suffix(".svg"))
    print(json.dumps(content["gain"]))


if __name__ == "__main__":
    chosen = sys.argv[4] if len(sys.argv) > 4 else "1,2,3"
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), [int(seed) for seed in chosen.split(",")])
