"""Codes to be found in long texts: accuracy of a running server in standard mode over length and depth.

The texts are tasks/needles.py's, from its held-out bindings; their lengths are the server's own count of the
prompt's tokens. Nothing here knows the engine or the model.
"""

import argparse
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from evals.asking import Server, result_head, sampled, show_result, together, with_server
from server.cli_errors import UsageError
from tasks.needles import FAMILIES, RETRIEVAL, Needle, Sizing, draw

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
ANSWER_TOKENS = 64
AT_ONCE = 8
_MOST_DEPTHS = 11


@dataclass(frozen=True)
class Outcome:
    """One question: where the needle lay, what came back and its score from 0 to 1. `length` holds the answer too."""

    family: str
    length: int
    depth: float
    prompt_tokens: int
    question: str
    expected: str
    answer: str
    score: float


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the map and, where asked to, writes the result. Raises UsageError."""
    families = _families(args.families)
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    result = with_server(args.url, AT_ONCE, lambda server: evaluate(server, families, lengths, args.items, args.seed))
    show_result(result, _table(result), args.json)
    print(f"worst {result['summary']['worst']:.1%}, mean {result['summary']['mean']:.1%}")
    return 0


async def evaluate(
    server: Server, families: Sequence[str], lengths: Sequence[int] | None, items: int, seed: int
) -> dict[str, Any]:
    """The result of `twogear eval needles`. Raises UsageError where a length does not fit into the context."""
    version, outcomes = await measure(server, families, lengths, items, seed)
    return summarize(version, outcomes, items=items, seed=seed)


def parse_lengths(text: str) -> tuple[int, ...]:
    """`1024,4K` as (1024, 4096), ascending. Raises UsageError."""
    lengths = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)([kK]?)", part.strip())
        if match is None or int(match[1]) == 0:
            raise UsageError(f"--lengths: {part!r} is no number of tokens such as 4096 or 4K")
        lengths.add(int(match[1]) * (1024 if match[2] else 1))
    return tuple(sorted(lengths))


def _families(text: str | None) -> tuple[str, ...]:
    families = RETRIEVAL if text is None else tuple(text.split(","))
    unknown = [name for name in families if name not in FAMILIES]
    if unknown:
        raise UsageError(f"--families: {unknown[0]!r} is none of {', '.join(FAMILIES)}")
    return families


async def measure(
    server: Server, families: Sequence[str], lengths: Sequence[int] | None, items: int, seed: int
) -> tuple[dict[str, Any], list[Outcome]]:
    """The server's version and the outcomes. Raises UsageError where a length does not fit into the context."""
    context = await server.context()
    lengths = lengths or [length for length in LENGTHS if length <= context]
    if not lengths or lengths[-1] > context:
        longest = max(lengths, default=LENGTHS[0])
        raise UsageError(f"--lengths: {longest} tokens are more than the server's context of {context}")
    placed = plan(families, lengths, items, seed)
    mode = await server.mode_of_kind("direct")
    asked = (_ask(server, needle, length, mode) for needle, length in placed)
    return await server.version(), await together("asking", asked)


def plan(families: Sequence[str], lengths: Sequence[int], items: int, seed: int) -> list[tuple[Needle, int]]:
    """`items` needles over all lengths, eleven depths or as many as the items allow, the families in turn."""
    if items < len(lengths):
        raise UsageError(f"--items must be at least {len(lengths)}, one for each length")
    count = min(_MOST_DEPTHS, items // len(lengths))
    depths = [round(step / (count - 1), 3) if count > 1 else 0.5 for step in range(count)]
    cells = [(length, depth) for length in lengths for depth in depths]
    rng = random.Random(seed)
    needles = []
    for index in range(items):
        turn, cell = divmod(index, len(cells))
        length, depth = cells[cell]
        needles.append((draw(families[(turn + cell) % len(families)], depth, rng, held_out=True), length))
    return needles


async def _ask(server: Server, needle: Needle, length: int, mode: str) -> Outcome:
    sizing = Sizing(length - ANSWER_TOKENS)
    try:
        while (sentences := sizing.next) is not None:
            sizing.tell(await server.count_tokens(needle.prompt(sentences), mode))
    except ValueError as error:
        raise UsageError(f"--lengths: {length} tokens are too few: {error}") from error
    prompt = needle.prompt(sizing.best)
    reply = await server.ask(prompt, reasoning_mode=mode, max_tokens=ANSWER_TOKENS)
    return Outcome(
        family=needle.family,
        length=length,
        depth=needle.depth,
        prompt_tokens=reply.prompt_tokens,
        question=needle.question,
        expected=needle.answer,
        answer=reply.answer,
        score=needle.score(reply.answer),
    )


def _mean(outcomes: Sequence[Outcome]) -> float:
    return round(sum(outcome.score for outcome in outcomes) / len(outcomes), 4)


def summarize(version: dict[str, Any], outcomes: Sequence[Outcome], *, items: int, seed: int) -> dict[str, Any]:
    """The result of what `measure` found with so many items and that seed."""
    lengths = sorted({outcome.length for outcome in outcomes})
    depths = sorted({outcome.depth for outcome in outcomes})
    families = [family for family in FAMILIES if any(outcome.family == family for outcome in outcomes)]
    cells = [[_mean([o for o in outcomes if (o.length, o.depth) == (x, y)]) for y in depths] for x in lengths]
    flat = [accuracy for row in cells for accuracy in row]
    options = f"--items {items} --seed {seed} --families {','.join(families)}"
    return {
        **result_head("needles", f"{options} --lengths {','.join(map(str, lengths))}", version),
        "summary": {"worst": min(flat), "mean": round(sum(flat) / len(flat), 4)},
        "grid": {"lengths": lengths, "depths": depths, "accuracy": cells},
        "families": {family: _by_length([o for o in outcomes if o.family == family]) for family in families},
        "asked": len(outcomes),
        "outcomes": [asdict(outcome) for outcome in sampled(outcomes, lambda outcome: outcome.score == 1.0)],
    }


def show(result: dict[str, Any]) -> None:
    """Prints the map."""
    Console().print(_table(result))


def _by_length(outcomes: Sequence[Outcome]) -> dict[str, float]:
    lengths = sorted({outcome.length for outcome in outcomes})
    return {str(length): _mean([o for o in outcomes if o.length == length]) for length in lengths}


def _table(result: dict[str, Any]) -> Table:
    grid = result["grid"]
    table = Table("tokens", *(f"{depth:.0%}" for depth in grid["depths"]), title="codes found, by depth in the text")
    for length, row in zip(grid["lengths"], grid["accuracy"], strict=True):
        table.add_row(str(length), *(f"{accuracy:.0%}" for accuracy in row))
    return table
