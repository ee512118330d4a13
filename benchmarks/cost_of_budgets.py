"""What a budget that is enforced costs: `python -m benchmarks.cost_of_budgets`, on `twogear serve` or a running server.

A thinking that the model ends by itself is one generation. One that spends its budget is two over the same pages: the
first is ended, the wrap-up and the end tag are said for the model, and the answer is generated from there. Each
question is asked both ways in turn, greedily, with a budget one token below its natural thinking. Both ways the model
is made to draw the same number of tokens, so that the difference is what the second generation costs: one step whose
token is thrown away, and one, for all that run, in which what was said is read too.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.load import records
from benchmarks.load.checkpoints import checkpoint
from benchmarks.load.machine import Machine, measure_apart
from benchmarks.load.running import RunningServer, free_port
from benchmarks.peers.servers import Target, twogear
from benchmarks.result_text import result_text
from chat_templates.format import ChatFormat
from server.settings import EMBEDDED_MODEL
from tasks.families import EMBEDDED, held_out_items

CHAT = "/v1/chat/completions"
START_LIMIT = 600.0
ANSWER = 100
"""Tokens from the natural end of the thinking on."""
SHORTEST, LONGEST = 32, 280
"""Tokens of a natural thinking that is worth a budget and leaves the answer the quarter that is kept for it."""
STREAMS = (1, 16)


@dataclass(frozen=True)
class Question:
    """A question and both ways to ask it. `thinking`: tokens of its natural thinking; `drawn`: with the answer's."""

    text: str
    thinking: int
    drawn: int
    natural: dict[str, Any]
    budget: dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """One question asked both ways, at once with others where `streams` is more than 1. Seconds."""

    streams: int
    thinking: int
    drawn: int
    natural: float
    budget: float


def main() -> int:
    """Measures, writes the file, prints its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_of_budgets", description=__doc__)
    parser.add_argument("--url", help="a running server with the embedded model; one is started if not given")
    parser.add_argument("--questions", type=int, default=48, help="how many are asked, of twice as many that are tried")
    parser.add_argument("--rounds", type=int, default=6, help="how often each is asked both ways, in turn")
    parser.add_argument("--json", type=Path, help="a dated file under benchmarks/results/ if not given")
    args = parser.parse_args()
    machine = measure_apart()
    with ExitStack() as stack:
        url = args.url or _serve(stack)
        pairs = asyncio.run(_measure(url, args.questions, args.rounds))
    path = args.json or records.default_path("budgets", machine).with_stem(f"cost_of_budgets_{records.today()}")
    command = f"python -m benchmarks.cost_of_budgets --questions {args.questions} --rounds {args.rounds}"
    path.write_text(result_text(_result(command, machine, pairs)))
    Console().print(table(pairs))
    print(f"written to {path}")
    return 0


def table(pairs: Sequence[Pair]) -> Table:
    """Medians over questions and rounds."""
    shown = Table(
        "at once", "tokens drawn", "one generation", "two", "more", "share", title="a budget that is enforced"
    )
    for streams in STREAMS:
        mine = [pair for pair in pairs if pair.streams == streams]
        more = statistics.median(pair.budget - pair.natural for pair in mine)
        share = statistics.median(pair.budget / pair.natural - 1 for pair in mine)
        shown.add_row(
            str(streams),
            f"{statistics.median(pair.drawn for pair in mine):.0f}",
            *(f"{statistics.median(getattr(pair, way) for pair in mine):.3f} s" for way in ("natural", "budget")),
            f"{more * 1e3:.1f} ms",
            f"{share:.1%}",
        )
    return shown


def _serve(stack: ExitStack) -> str:
    folder, port = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twogear-cost-"))), free_port()
    start = twogear(Target("embedded", checkpoint("embedded"), port, folder))
    server = stack.enter_context(RunningServer(start, port, folder / "log"))
    server.wait_until_ready(START_LIMIT)
    return server.url


async def _measure(url: str, wanted: int, rounds: int) -> list[Pair]:
    limits = httpx.Limits(max_connections=max(STREAMS))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        questions: list[Question] = []
        for item in held_out_items(EMBEDDED, 2 * wanted, seed=0):
            question = await _prepare(client, item.question.strip())
            if question is not None and len(questions) < wanted:
                questions.append(question)
        if len(questions) < max(STREAMS):
            raise SystemExit(f"only {len(questions)} questions are thought about for {SHORTEST} tokens or more")
        pairs = []
        for streams in STREAMS:
            groups = [questions[first : first + streams] for first in range(0, len(questions) - streams + 1, streams)]
            for number, group in enumerate(groups * rounds):
                pairs += await _both(client, group, budget_first=number // len(groups) % 2 == 1)
    return pairs


async def _prepare(client: httpx.AsyncClient, text: str) -> Question | None:
    """None where the model does not end its thinking, or soon does. Leaves the prompt in the engine's cache."""
    fields = {"messages": [{"role": "user", "content": text}], "reasoning_mode": "reasoning", "temperature": 0}
    fields |= {"ignore_eos": True, "return_token_ids": True}
    tried = await _ask(client, {**fields, "max_tokens": 600})
    thinking = tried["usage"]["completion_tokens_details"]["reasoning_tokens"]
    if tried["choices"][0]["reasoning_finish_reason"] != "natural" or not SHORTEST <= thinking <= LONGEST:
        return None
    natural = {**fields, "max_tokens": thinking + ANSWER}
    drawn_ids = tried["choices"][0]["token_ids"]
    closed = await _ask(client, {**fields, "max_tokens": 600, "thinking_token_budget": thinking - 1})
    ids = closed["choices"][0]["token_ids"]
    thought = next(place for place, (one, other) in enumerate(zip(ids, drawn_ids, strict=False)) if one != other)
    _, tag, gap = ChatFormat.from_folder(EMBEDDED_MODEL).closing()
    said = thinking - 1 - thought + len(tag) + len(gap)  # the wrap-up, up to the budget; then the closing
    budget = {**fields, "max_tokens": thinking + ANSWER + said, "thinking_token_budget": thinking - 1}
    return Question(text, thinking, thinking + ANSWER, natural, budget)


async def _both(client: httpx.AsyncClient, questions: Sequence[Question], *, budget_first: bool) -> list[Pair]:
    """A pair is left out where an answer took another course than when it was tried: batches round differently."""
    seconds: dict[str, list[float | None]] = {}
    for way in sorted(("natural", "budget"), reverse=not budget_first):
        asked = [_timed(client, getattr(question, way), way) for question in questions]
        seconds[way] = await asyncio.gather(*asked)
    return [
        Pair(len(questions), question.thinking, question.drawn, natural, budget)
        for question, natural, budget in zip(questions, seconds["natural"], seconds["budget"], strict=True)
        if natural is not None and budget is not None
    ]


async def _timed(client: httpx.AsyncClient, body: dict[str, Any], way: str) -> float | None:
    started = time.perf_counter()
    result = await _ask(client, body)
    seconds = time.perf_counter() - started
    (choice,) = result["choices"]
    as_tried = choice["reasoning_finish_reason"] == way and len(choice["token_ids"]) == body["max_tokens"]
    return seconds if as_tried else None


async def _ask(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(CHAT, json=body)
    if response.status_code != 200:
        raise SystemExit(f"the server answered {response.status_code}: {response.text[:300]}")
    return dict(response.json())


def _result(command: str, machine: Machine, pairs: Sequence[Pair]) -> dict[str, Any]:
    return {
        "what": "cost of budgets",
        "date": records.today(),
        "command": command,
        "commit": records.commit(),
        "machine": asdict(machine),
        "versions": records.versions(),
        "pairs": [asdict(pair) for pair in pairs],
    }


if __name__ == "__main__":
    sys.exit(main())
