"""Accuracy of a running server in reasoning mode over growing thinking budgets, through its HTTP API.

Every budget asks the same held-out items with the same seeds, so the thinking at a budget is what the unbounded run
thought first. Beside the forced answer stands what a server gives that ends a request when its tokens are spent: the
same answer where the thinking ended by itself, none where it did not.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from evals.asking import Server, result_head, sampled, together
from evals.modes import options_of, run_held_out
from tasks.families import FAMILIES, Item, held_out_items, score

NATURAL = "natural"
_FIRST_BUDGET = 8


@dataclass(frozen=True)
class Outcome:
    """One item at one budget: the answer, its score, and the score of stopping without an answer; 0 to 1."""

    family: str
    budget: str
    question: str
    expected: str
    answer: str
    score: float
    stopped_score: float
    completion_tokens: int
    reasoning_tokens: int
    reasoning_finish_reason: str | None


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table and, where asked to, writes the result. Raises UsageError."""
    return run_held_out(args, evaluate, _table)


async def evaluate(
    server: Server, names: Sequence[str], items: int, seed: int, most_tokens: int | None = None
) -> dict[str, Any]:
    """The result of `twogear eval budgets` with so many items of these families."""
    asked = list(held_out_items(names, items, seed))
    version, standard, outcomes = await measure(server, asked, seed, most_tokens)
    options = options_of(names, items, seed, most_tokens)
    by_family = {name: [o for o in outcomes if o.family == name] for name in names}
    return {
        **result_head("budgets", options, version),
        "difficulty": {name: dict(FAMILIES[name].config) for name in names},
        "summary": _curve(outcomes, "score"),
        "stopped": _curve(outcomes, "stopped_score"),
        "standard": _mean(standard),
        "families": {
            name: {"forced": _curve(own, "score"), "stopped": _curve(own, "stopped_score")}
            for name, own in by_family.items()
        },
        "asked": len(outcomes),
        "outcomes": [asdict(outcome) for outcome in sampled(outcomes, lambda outcome: outcome.score == 1.0)],
    }


async def measure(
    server: Server, items: Sequence[Item], seed: int, most_tokens: int | None = None
) -> tuple[dict[str, Any], list[float], list[Outcome]]:
    """The server's version, the items' scores without thinking, and the outcomes at 0, 8, 16, ... and unbounded.

    Thought and answer are `most_tokens` at most, if given.
    """
    version = await server.version()
    direct, thinking = await server.mode_of_kind("direct"), await server.mode_of_kind("thinking")
    standard = await together(direct, (_ask_direct(server, item, direct) for item in items))
    fields: dict[str, Any] = {"reasoning_mode": thinking}
    if most_tokens is not None:
        fields["max_completion_tokens"] = most_tokens
    natural = await _at_budget(server, items, seed, NATURAL, fields)
    outcomes: list[Outcome] = []
    ended = [outcome.reasoning_tokens for outcome in natural if outcome.reasoning_finish_reason == "natural"]
    for budget in budgets_below(max(ended, default=0)):  # beyond it only thinking is cut that repeats itself
        outcomes += await _at_budget(server, items, seed, str(budget), {**fields, "thinking_token_budget": budget})
    return version, standard, outcomes + natural


def budgets_below(longest: int) -> list[int]:
    """0, 8, 16, 32, ... as long as they cut the longest thinking that ended by itself."""
    budgets = [0]
    while (following := max(2 * budgets[-1], _FIRST_BUDGET)) < longest:
        budgets.append(following)
    return budgets


async def _at_budget(
    server: Server, items: Sequence[Item], seed: int, budget: str, fields: dict[str, Any]
) -> list[Outcome]:
    asked = (_ask(server, item, seed + index, budget, fields) for index, item in enumerate(items))
    return await together(f"budget {budget}", asked)


async def _ask_direct(server: Server, item: Item, mode: str) -> float:
    return score(item, (await server.ask(item.question.strip(), reasoning_mode=mode)).answer)


async def _ask(server: Server, item: Item, seed: int, budget: str, fields: dict[str, Any]) -> Outcome:
    reply = await server.ask(item.question.strip(), seed=seed, **fields)
    points = score(item, reply.answer)
    return Outcome(
        family=item.family,
        budget=budget,
        question=item.question,
        expected=item.answer,
        answer=reply.answer,
        score=points,
        stopped_score=points if reply.reasoning_finish_reason == "natural" else score(item, ""),
        completion_tokens=reply.completion_tokens,
        reasoning_tokens=reply.reasoning_tokens,
        reasoning_finish_reason=reply.reasoning_finish_reason,
    )


def _mean(scores: Sequence[float]) -> float:
    return round(sum(scores) / len(scores), 4)


def _curve(outcomes: Sequence[Outcome], field: str) -> dict[str, float]:
    """The mean of a score per budget, in the order of the outcomes."""
    budgets = dict.fromkeys(outcome.budget for outcome in outcomes)
    return {budget: _mean([getattr(o, field) for o in outcomes if o.budget == budget]) for budget in budgets}


def _table(result: dict[str, Any]) -> Table:
    families = result["families"]
    title = f"accuracy over thinking budgets, in % (standard mode: {result['standard']:.1%})"
    table = Table("family", *result["summary"], title=title)
    rows = [(name, family["forced"]) for name, family in families.items()]
    for name, by_budget in [*rows, ("all", result["summary"]), ("stopped", result["stopped"])]:
        if name == "all":
            table.add_section()
        table.add_row(name, *(f"{by_budget[budget] * 100:.1f}" for budget in result["summary"]))
    return table
