"""Promotion: a finished run is evaluated as a server would serve it, held to goals, and copied where it is served from.

Nothing else in this package writes into `models/`. What is asked is the evaluations' own (evals/).
"""

import asyncio
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from evals import budgets, modes, needles, tools
from server.cli_errors import UsageError
from tasks.families import EMBEDDED
from tasks.needles import RETRIEVAL
from training.card import card
from training.goals import Goal, goals
from training.served import ServedCheckpoint
from training.tokenizer import FILES

WEIGHTS = ("config.json", "generation_config.json", "model.safetensors", *FILES)
_LONGEST = 131072
_MOST_TOKENS = 2048  # several times the longest thought; what goes on for longer repeats itself
_DEPTHS = 11


@dataclass(frozen=True)
class Amounts:
    """How much is asked: `items` of modes, tools and budgets each, `needles` up to 32K, eleven at 128K if `longest`."""

    items: int = 1000
    needles: int = 198
    longest: bool = True


async def evaluate(checkpoint: Path, seed: int, amounts: Amounts) -> dict[str, dict[str, Any]]:
    """The evaluations' results by name. Raises UsageError where no engine can come up."""
    async with ServedCheckpoint(checkpoint) as served:
        server = await served.now(modes.AT_ONCE)
        found = {
            "modes": await modes.evaluate(server, EMBEDDED, amounts.items, seed, _MOST_TOKENS),
            "tools": await tools.evaluate(server, tuple(tools.KINDS), amounts.items, seed),
            "budgets": await budgets.evaluate(server, EMBEDDED, amounts.items, seed, _MOST_TOKENS),
        }
        server = await served.now(needles.AT_ONCE)
        found["needles"] = await needles.evaluate(server, RETRIEVAL, None, amounts.needles, seed)
        if amounts.longest:
            found["needles_128k"] = await needles.evaluate(server, RETRIEVAL, [_LONGEST], _DEPTHS, seed)
    return found


def promote(
    run: Path, to: Path, results: Mapping[str, Mapping[str, Any]], *, even_if_below: bool = False
) -> tuple[list[Goal], bool]:
    """Copies a run's checkpoint to `to` with a card, if it reaches all goals or need not; those, and whether.

    Beside it goes `training.json`: the run's record, the goals and the results' summaries.
    """
    reached = goals(results)
    if not (even_if_below or all(goal.is_reached for goal in reached)):
        return reached, False
    record = read_record(run)
    to.mkdir(parents=True, exist_ok=True)
    for name in WEIGHTS:
        shutil.copy(run / "checkpoint" / name, to)
    told = {
        "record": record,
        "goals": [msgspec.to_builtins(goal) for goal in reached],
        "results": {
            name: {key: value for key, value in result.items() if key != "outcomes"} for name, result in results.items()
        },
    }
    (to / "training.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    config = json.loads((to / "config.json").read_text())
    (to / "README.md").write_text(card(to.name, config, record, reached, results))
    return reached, True


def read_record(run: Path) -> dict[str, Any]:
    """A run's record. Raises UsageError where the folder has no finished run."""
    try:
        record: dict[str, Any] = json.loads((run / "record.json").read_text())
    except OSError as error:
        raise UsageError(f"{run} is no run of `twogear train`: it has no record.json") from error
    done = {stage["stage"] for stage in record["finished"]}
    left = [stage["name"] for stage in record["recipe"]["stages"] if stage["name"] not in done]
    if left:
        raise UsageError(f"{run} is not finished: its stage {left[0]} is to be trained yet")
    return record


def run_command(run: Path, to: Path, *, seed: int, amounts: Amounts, even_if_below: bool) -> int:
    """Evaluates, prints the goals, promotes; 0 if it did, else 1. The results go into the run's folder as well."""
    read_record(run)
    results = asyncio.run(evaluate(run / "checkpoint", seed, amounts))
    (run / "promotion.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    reached, is_promoted = promote(run, to, results, even_if_below=even_if_below)
    table = Table("goal", "at least", "found", "")
    for goal in reached:
        table.add_row(goal.name, f"{goal.least:.1f}", f"{goal.found:.1f}", "" if goal.is_reached else "not reached")
    Console().print(table)
    print(f"{run} is now in {to}" if is_promoted else f"not promoted: {to} stays as it is")
    return 0 if is_promoted else 1
