"""Thoughts that go round in circles: which of them the rule of a profile closes, and which others.

The server has to run with a profile whose rule is off (`enabled = false` in `[modes.NAME.repetition]`), so that every
thought shows how it ends by itself. The rule that profiles have unless they say otherwise is then applied to its
tokens. Asked are held-out questions, and others that are far from what the embedded checkpoint was trained on, with
which it often loops.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.table import Table

from evals.asking import Server, result_head, show_result, together, with_server
from server.cli_errors import UsageError
from server.core.repetition import RepetitionWatch
from server.modes.repetition import Repetition
from tasks.families import EMBEDDED, held_out_items

AT_ONCE = 64
MOST_TOKENS = 6000
STRANGE_SHARE = 8
"""One question in so many is a strange one."""
WORDS = (
    "the",
    "a",
    "house",
    "write",
    "tell",
    "poem",
    "about",
    "why",
    "how",
    "many",
    "list",
    "count",
    "spell",
    "code",
    "of",
)


@dataclass(frozen=True)
class Outcome:
    """One thought: how it ended, its tokens, and after how many of them the rule closes it."""

    kind: str
    ended: bool
    tokens: int
    closed_after: int | None


def run(args: argparse.Namespace) -> int:
    """Asks, applies the rule, prints the table and, where asked to, writes the result. Raises UsageError."""
    if args.families is not None:
        raise UsageError("--families does not go with loops: it asks all that the embedded checkpoint knows")
    most = args.most_tokens or MOST_TOKENS
    result = with_server(args.url, AT_ONCE, lambda server: evaluate(server, args.items, args.seed, most))
    show_result(result, _table(result), args.json)
    return 0


async def evaluate(
    server: Server, items: int, seed: int, most_tokens: int, rule: Repetition | None = None
) -> dict[str, Any]:
    """The result of `twogear eval loops`; `rule` None: that of a profile that names none."""
    rule = rule or Repetition()
    mode = await server.mode_of_kind("thinking")
    version = await server.version()
    asked = list(questions(items, seed))
    body = {"reasoning_mode": mode, "max_completion_tokens": most_tokens, "return_token_ids": True}
    outcomes = await together("thoughts", (_one(server, kind, question, body, rule) for kind, question in asked))
    kinds = dict.fromkeys(kind for kind, _ in asked)
    return {
        **result_head("loops", f"--items {items} --seed {seed} --most-tokens {most_tokens}", version),
        "rule": msgspec.to_builtins(rule),
        "kinds": {kind: summarize([one for one in outcomes if one.kind == kind]) for kind in kinds},
    }


def questions(items: int, seed: int) -> Iterator[tuple[str, str]]:
    """`items` questions with their kinds: `held-out`, and one `strange` to seven of these."""
    rng = random.Random(seed)
    strange = items // STRANGE_SHARE
    for item in held_out_items(EMBEDDED, items - strange, seed):
        yield "held-out", item.question
    for index in range(strange):
        yield "strange", _strange(rng, index)


def _strange(rng: random.Random, index: int) -> str:
    kind = index % 3
    if kind == 0:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 40)))
    if kind == 1:
        return "Calculate " + " + ".join(str(rng.randint(1, 99999)) for _ in range(rng.randint(8, 30))) + "."
    return "Spell this backward: " + "".join(rng.choice("abcdefghij") for _ in range(rng.randint(20, 60)))


async def _one(server: Server, kind: str, question: str, body: dict[str, Any], rule: Repetition) -> Outcome:
    reply = await server.ask(question, **body)
    if reply.reasoning_finish_reason == "repetition":
        raise UsageError("the server closes loops itself: start it with a profile that has repetition.enabled = false")
    closed_after = RepetitionWatch(rule).feed(reply.token_ids[: reply.reasoning_tokens])
    return Outcome(kind, reply.reasoning_finish_reason in ("natural", "stopped"), reply.reasoning_tokens, closed_after)


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Thoughts that ended by themselves and those that did not, how many the rule closes, and after how many tokens."""
    counts: dict[str, Any] = {}
    for name, ended in (("ended", True), ("endless", False)):
        found = [one for one in outcomes if one.ended is ended]
        closed = sorted(one.closed_after for one in found if one.closed_after is not None)
        counts[name] = {
            "thoughts": len(found),
            "longest": max((one.tokens for one in found), default=0),
            "closed": len(closed),
            "closed_after_median": closed[len(closed) // 2] if closed else None,
            "closed_after_most": closed[-1] if closed else None,
        }
    return counts


def _table(result: dict[str, Any]) -> Table:
    table = Table(
        "questions", "thoughts", "number", "longest", "closed", "after, median", title="thoughts and the rule"
    )
    for kind, counts in result["kinds"].items():
        for name, row in counts.items():
            table.add_row(
                kind,
                name,
                *(str(row[key]) for key in ("thoughts", "longest", "closed")),
                str(row["closed_after_median"] or ""),
            )
    return table
