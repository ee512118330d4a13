"""The study of mixes: `python -m training.mixes RECIPE FOLDER RESULT.json [--ratios 0.5,1,1.5,3] [--seeds 1,2]`.

For each seed and each ratio of reasoning tokens to standard tokens one model is trained by the recipe's one stage, with
its number of tokens, and asked the same held-out items in both modes through the server. What is finished in FOLDER is
not done again, and a training that was interrupted goes on. The plot is evals/plots.py's.
"""

import argparse
import asyncio
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from evals import modes as eval_modes
from evals.asking import MOST_KEPT, sampled
from tasks.families import Item, held_out_items
from training import stages, tokenizer
from training.modes import STYLES
from training.recipe import Mix, Recipe, SftStage, load
from training.served import ServedCheckpoint
from training.trainer import Trainer

RATIOS = (0.5, 1.0, 1.5, 3.0)
_MOST_TOKENS = 384  # several times a right answer with its thought; one that repeats itself is wrong soon


def of_one(recipe: Recipe, seed: int, ratio: float) -> Recipe:
    """The recipe of one model."""
    stage = the_stage(recipe)
    mixed = msgspec.structs.replace(stage, mix=msgspec.structs.replace(stage.mix, reasoning_ratio=ratio))
    return msgspec.structs.replace(recipe, seed=seed, stages=(mixed,))


def the_stage(recipe: Recipe) -> SftStage:
    """The one stage of fine-tuning. Raises ValueError for a recipe that has another, or more."""
    match recipe.stages:
        case (SftStage() as stage,):
            return stage
    raise ValueError("a study of mixes has one stage, of the kind sft")


def study(
    recipe: Recipe,
    ratios: Sequence[float],
    seeds: Sequence[int],
    folder: Path,
    *,
    items: int,
    threads: int | None,
    so_far: bool = False,
) -> list[dict[str, Any]]:
    """Trains and asks what is not finished; each model as a result holds it, a seed's ratios one after the other.

    `so_far` leaves out what is not finished instead.
    Raises ValueError where `folder` has models of another recipe or other items, UsageError without an engine.
    """
    _keep_to(folder, {"recipe": recipe.digest, "items": items})
    mix = the_stage(recipe).mix
    device = stages.prepare(threads)
    if not (folder / tokenizer.FILES[0]).exists():
        tokenizer.save(tokenizer.train(recipe.model.vocabulary_size, recipe.seed), folder)
    asked = list(held_out_items(tuple(mix.families), items, recipe.seed, level=mix.hardest))
    models = []
    for seed, ratio in product(seeds, ratios):
        own = folder / f"seed-{seed}" / f"ratio-{ratio:g}"
        found = own / "found.json"
        if so_far and not found.exists():
            continue
        if not found.exists():
            own.mkdir(parents=True, exist_ok=True)
            for name in tokenizer.FILES:
                shutil.copy(folder / name, own)
            model = of_one(recipe, seed, ratio)
            trainer = Trainer(model, own, device)
            stages.run(trainer)
            found_out = asyncio.run(_ask(trainer.checkpoint, asked, the_stage(model).mix))
            measured = {"seed": seed, "ratio": ratio, **_trained(own), **found_out}
            found.write_text(json.dumps(measured, indent=1) + "\n")
        models.append(json.loads(found.read_text()))
    return models


def _keep_to(folder: Path, wanted: dict[str, Any]) -> None:
    """Holds a folder to what its first model was made with."""
    kept = folder / "study.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(wanted, indent=1) + "\n")
    elif json.loads(kept.read_text()) != json.loads(json.dumps(wanted)):
        raise ValueError(f"{folder} has models of another recipe, or with other items: take another folder")


def _trained(run: Path) -> dict[str, Any]:
    """How long a run was, and its last losses, by its metrics."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: last[name] for name in ("tokens", "seconds", "loss")}


async def _ask(checkpoint: Path, items: Sequence[Item], mix: Mix) -> dict[str, Any]:
    """A finished checkpoint in both modes, by the server."""
    async with ServedCheckpoint(checkpoint) as served:
        server = await served.now(eval_modes.AT_ONCE)
        modes = await server.modes()
        version, outcomes = await eval_modes.measure(server, items, modes, _MOST_TOKENS)
    return {"server": version, **eval_modes.summarize(tuple(mix.families), outcomes, modes, level=mix.hardest)}


def _sampled(model: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """A model's share of the outcomes that the result keeps."""
    outcomes: list[dict[str, Any]] = model["outcomes"]
    return sampled(outcomes, lambda outcome: outcome["score"] == 1.0, most)


def _table(models: Sequence[dict[str, Any]]) -> Table:
    columns = [f"{what} {mode}" for what in ("accuracy", "like the other:") for mode in STYLES]
    table = Table("seed", "reasoning : standard", *columns, title="mixes")
    for model in models:
        confused = [model["confusion"][mode]["any"] for mode in STYLES]
        shares = [*(model["summary"][mode] for mode in STYLES), *confused]
        table.add_row(str(model["seed"]), f"{model['ratio']:g} : 1", *(f"{share:.1%}" for share in shares))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study and writes its result."""
    parser = argparse.ArgumentParser("python -m training.mixes", description="models of several mixes, compared")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path, help="state and checkpoints; what is finished there is not done again")
    parser.add_argument("result", type=Path)
    parser.add_argument("--ratios", default=",".join(f"{ratio:g}" for ratio in RATIOS), help="reasoning per standard")
    parser.add_argument("--seeds", help="comma-separated; the recipe's where not given")
    parser.add_argument("--items", type=int, default=300, help="questions, each asked in both modes")
    parser.add_argument("--threads", type=int, help="CPU threads; all cores where not given")
    parser.add_argument("--so-far", action="store_true", help="trains nothing: the result of what is finished")
    args = parser.parse_args(arguments)
    recipe = load(args.recipe)
    ratios = [float(ratio) for ratio in args.ratios.split(",")]
    seeds = [recipe.seed] if args.seeds is None else [int(seed) for seed in args.seeds.split(",")]
    models = study(recipe, ratios, seeds, args.folder, items=args.items, threads=args.threads, so_far=args.so_far)
    options = f"--ratios {args.ratios} --seeds {','.join(map(str, seeds))} --items {args.items}"
    options += " --so-far" if args.so_far else ""
    result = {
        "what": "mixes",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"python -m training.mixes {args.recipe} {args.folder} {args.result} {options}",
        "recipe": msgspec.to_builtins(recipe),
        "models": [{**model, "outcomes": _sampled(model, MOST_KEPT // len(models))} for model in models],
    }
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    Console().print(_table(models))


if __name__ == "__main__":
    main()
