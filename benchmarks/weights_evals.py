"""How fewer bits answer: `python -m benchmarks.weights_evals URL URL …`, the same held-out questions for each server.

All servers have the same model, the first one in bfloat16, the others in other formats; they say themselves in which.
Every question is asked of all of them in each mode that does not choose, with the server's own sampling and the same
seed, so that what chance decides is much the same for all. What is told is the accuracy in points of 100, and of each
other server the mean of its differences from the first one, question by question, with the half width of its interval
of 95 %.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.load.tables import Cells
from benchmarks.result_text import result_text
from evals.asking import Server, together, with_server
from server.cli_errors import UsageError
from server.urls import server_url
from tasks.families import EMBEDDED, Item, held_out_items, score

AT_ONCE = 32


@dataclass(frozen=True)
class Answers:
    """Of one server: its weights' format, and by mode the score of each question, from 0 to 1."""

    weights: str
    scores: dict[str, list[float]]


async def ask_all(server: Server, items: Sequence[Item]) -> Answers:
    """All questions in each mode that does not choose."""
    modes = [name for name, kind in (await server.modes()).items() if kind != "auto"]
    scores = {}
    for mode in modes:
        jobs = (_ask(server, number, item, mode) for number, item in enumerate(items))
        scores[mode] = await together(mode, jobs)
    return Answers(await server.weights(), scores)


async def _ask(server: Server, number: int, item: Item, mode: str) -> float:
    reply = await server.ask(item.question.strip(), reasoning_mode=mode, seed=number)
    return score(item, reply.answer)


def figures(found: Sequence[Answers]) -> list[dict[str, Any]]:
    """By mode and format: accuracy, and the difference from the first one's; all in points of 100."""
    first = found[0]
    return [
        {"mode": mode, "weights": one.weights, "accuracy": 100 * statistics.fmean(one.scores[mode])}
        | ({} if one is first else difference(first.scores[mode], one.scores[mode]))
        for mode in first.scores
        for one in found
    ]


def difference(reference: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """The mean of the differences in points, the half width of its interval of 95 %, and how many differ."""
    apart = [100 * (ours - theirs) for theirs, ours in zip(reference, other, strict=True)]
    half = 1.96 * statistics.stdev(apart) / math.sqrt(len(apart))
    return {"difference": statistics.fmean(apart), "half_width": half, "differing": sum(map(bool, apart))}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    cells = [
        [
            str(row["mode"]),
            str(row["weights"]),
            f"{row['accuracy']:.2f}",
            f"{row['difference']:+.2f} ± {row['half_width']:.2f}" if "difference" in row else "–",
        ]
        for row in rows
    ]
    return Cells(["mode", "weights", "accuracy, points", "difference"], cells).markdown()


def main() -> None:
    """Asks, prints the table and writes the result. Raises UsageError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="+", type=server_url, metavar="URL", help="of servers, the first in bfloat16")
    parser.add_argument("--items", type=int, default=3000, help="questions")
    parser.add_argument("--seed", type=int, default=0, help="which questions are drawn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    if args.items < len(EMBEDDED):
        raise UsageError(f"--items must be at least {len(EMBEDDED)}, one for each family")
    items = list(held_out_items(EMBEDDED, args.items, args.seed))
    found = [with_server(url, AT_ONCE, lambda server: ask_all(server, items)) for url in args.urls]
    rows = figures(found)
    print(table(rows), end="")
    if args.json is not None:
        result = {
            "what": "weights_evals",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "command": f"python -m benchmarks.weights_evals {'URL ' * len(args.urls)}--items {args.items} "
            f"--seed {args.seed} --json FILE",
            "figures": rows,
        }
        args.json.write_text(result_text(result))


if __name__ == "__main__":
    main()
