"""Accuracy of a running server per mode and family, through its HTTP API.

Items and scores are reasoning-gym's, drawn from the held-out questions at the embedded checkpoint's difficulty
(training/families.py). Nothing here knows the engine or the model.
"""

import argparse
import asyncio
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from server.cli_errors import UsageError
from training.families import FAMILIES, Item, held_out_items, score

MODES = ("standard", "reasoning")
_CONCURRENCY = 32
_TIMEOUT_SECONDS = 600.0
_RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Outcome:
    """One item in one mode: what came back and its score from 0 to 1."""

    family: str
    mode: str
    question: str
    expected: str
    answer: str
    score: float
    completion_tokens: int
    reasoning_tokens: int
    reasoning_finish_reason: str | None


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table and writes the result. Raises UsageError."""
    names = _families(args.families)
    if args.items < len(names):
        raise UsageError(f"--items must be at least {len(names)}, one for each family")
    items = list(held_out_items(names, args.items, args.seed))
    try:
        version, outcomes = asyncio.run(_measure(args.url, items))
    except httpx.TransportError as error:
        raise UsageError(f"no server answers at {args.url} ({error}); start one with `twogear serve`") from error
    path = args.json or _default_path()
    result = _result(args, version, names, outcomes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    Console().print(_table(result))
    print(f"written to {path}")
    return 0


def _families(text: str | None) -> tuple[str, ...]:
    if text is None:
        return tuple(FAMILIES)
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise UsageError(f"--families: {unknown[0]!r} is none of {', '.join(FAMILIES)}")
    return names


def _default_path() -> Path:
    return _RESULTS / f"eval_modes_{platform.machine()}_{datetime.now(UTC):%Y-%m-%d}.json"


async def _measure(url: str, items: Sequence[Item]) -> tuple[dict[str, Any], list[Outcome]]:
    limits = httpx.Limits(max_connections=_CONCURRENCY)
    gate = asyncio.Semaphore(_CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS, limits=limits) as client:
        version = (await client.get("/version")).json()
        with Progress(disable=not sys.stderr.isatty()) as progress:
            bar = progress.add_task("asking", total=len(items) * len(MODES))

            async def one(item: Item, mode: str) -> Outcome:
                async with gate:
                    outcome = await _ask(client, item, mode)
                progress.advance(bar)
                return outcome

            outcomes = await asyncio.gather(*(one(item, mode) for item in items for mode in MODES))
    return version, list(outcomes)


async def _ask(client: httpx.AsyncClient, item: Item, mode: str) -> Outcome:
    """One question with the server's own sampling and budgets for the mode."""
    body = {"messages": [{"role": "user", "content": item.question.strip()}], "reasoning_mode": mode}
    response = await client.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        raise UsageError(f"the server answered {response.status_code}: {response.text[:300]}")
    reply = response.json()
    choice, usage = reply["choices"][0], reply["usage"]
    answer = choice["message"]["content"] or ""
    return Outcome(
        family=item.family,
        mode=mode,
        question=item.question,
        expected=item.answer,
        answer=answer,
        score=score(item, answer),
        completion_tokens=usage["completion_tokens"],
        reasoning_tokens=usage["completion_tokens_details"]["reasoning_tokens"],
        reasoning_finish_reason=choice.get("reasoning_finish_reason"),
    )


def _mean(outcomes: Sequence[Outcome], mode: str, family: str | None = None) -> float:
    scores = [o.score for o in outcomes if o.mode == mode and family in (None, o.family)]
    return round(sum(scores) / len(scores), 4)


def _result(
    args: argparse.Namespace, version: dict[str, Any], names: Sequence[str], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    return {
        "what": "eval modes",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"twogear eval modes --items {args.items} --seed {args.seed} --families {','.join(names)}",
        "server": version,
        "difficulty": {name: dict(FAMILIES[name].config) for name in names},
        "summary": {mode: _mean(outcomes, mode) for mode in MODES},
        "families": {name: {mode: _mean(outcomes, mode, name) for mode in MODES} for name in names},
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def _table(result: dict[str, Any]) -> Table:
    table = Table("family", *MODES, "gain", title="accuracy on held-out items")
    rows = [*result["families"].items(), ("all", result["summary"])]
    for name, accuracy in rows:
        if name == "all":
            table.add_section()
        standard, reasoning = (accuracy[mode] * 100 for mode in MODES)
        table.add_row(name, f"{standard:.1f} %", f"{reasoning:.1f} %", f"{reasoning - standard:+.1f}")
    return table
