"""What ending thoughts early would save: once trial answers, drawn along a thought, agree and are confident.

Every item is thought through once, and again with growing budgets and the same seed, so that the thought is the same up
to there and the answer is a trial (DEER, arXiv 2504.15895). All else is arithmetic; the server needs no `early_end`
for it. Its own trials are greedy; these are drawn as the mode draws its answers.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.table import Table

from evals.asking import Server, result_head, together
from evals.modes import options_of, run_held_out
from tasks.families import Item, held_out_items, score

EVERY = 32
"""Tokens from one trial to the next."""
MOST_TRIALS = 16
"""Of one thought."""
AGREEING = (1, 2, 3)
"""So many trials in a row have to say the same."""
KEPT_ACCURACY = 0.99


class Trial(NamedTuple):
    """An answer after a part of the thought: its text, score and sum of log-probabilities; the tokens of thought and
    answer together, and those that the answer alone took.
    """

    answer: str
    score: float
    confidence: float
    tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Thought:
    """One item, thought through: score, tokens with the answer, and the trials before its end."""

    score: float
    tokens: int
    trials: Sequence[Trial]


class Point(NamedTuple):
    """Mean score, tokens that a client would be given, and with them the tokens of all trials but the one kept."""

    accuracy: float
    tokens: float
    with_trials: float


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table and, where asked to, writes the result. Raises UsageError."""
    return run_held_out(args, evaluate, _table)


async def evaluate(
    server: Server, names: Sequence[str], items: int, seed: int, most_tokens: int | None = None
) -> dict[str, Any]:
    """The result of `twogear eval early` with so many items of these families."""
    version, mode = await server.version(), await server.mode_of_kind("thinking")
    bound = {} if most_tokens is None else {"max_completion_tokens": most_tokens}
    asked = enumerate(held_out_items(names, items, seed))
    thoughts = await together(
        "thinking", (_think(server, item, {**bound, "reasoning_mode": mode, "seed": seed + n}) for n, item in asked)
    )
    options = options_of(names, items, seed, most_tokens)
    return {**result_head("early", options, version), **summarize(thoughts)}


async def _think(server: Server, item: Item, fields: dict[str, Any]) -> Thought:
    whole = await server.ask(item.question.strip(), **fields)
    last = min(whole.reasoning_tokens - 1, EVERY * MOST_TRIALS)
    trials = [await _try(server, item, {**fields, "thinking_token_budget": n}) for n in range(EVERY, last + 1, EVERY)]
    return Thought(score(item, whole.answer), whole.completion_tokens, trials)


async def _try(server: Server, item: Item, fields: dict[str, Any]) -> Trial:
    messages = [{"role": "user", "content": item.question.strip()}]
    reply = await server.complete({"messages": messages, "logprobs": True, **fields})
    (choice,), usage = reply["choices"], reply["usage"]
    entries = (choice["logprobs"] or {}).get("content") or []
    text, tokens = choice["message"]["content"] or "", usage["completion_tokens"]
    return Trial(text.strip(), score(item, text), sum(one["logprob"] for one in entries), tokens, len(entries) + 1)


def ended(thoughts: Sequence[Thought], threshold: float, agreeing: int) -> Point:
    """If each thought ended at the first so many trials in a row that say the same, each so confident."""
    points = [_ended(thought, threshold, agreeing) for thought in thoughts]
    return Point(*(sum(values) / len(points) for values in zip(*points, strict=True)))


def _ended(thought: Thought, threshold: float, agreeing: int) -> Point:
    spent = 0
    for number, trial in enumerate(thought.trials, 1):
        last = thought.trials[max(0, number - agreeing) : number]
        is_sure = all(one.confidence >= threshold for one in last)
        if len(last) == agreeing and len({one.answer for one in last}) == 1 and is_sure:
            return Point(trial.score, trial.tokens, trial.tokens + spent)
        spent += trial.answer_tokens
    return Point(thought.score, thought.tokens, thought.tokens + spent)


def summarize(thoughts: Sequence[Thought]) -> dict[str, Any]:
    """What the thoughts come to, as a result holds it. `tokens`: of those thought to the end, with nothing tried;
    `early`: for each number of agreeing trials the cheapest threshold that keeps the accuracy, shares of `tokens`.
    """
    accuracy = sum(thought.score for thought in thoughts) / len(thoughts)
    tokens = sum(thought.tokens for thought in thoughts) / len(thoughts)
    levels = sorted({trial.confidence for thought in thoughts for trial in thought.trials})
    thresholds = [*levels[:: max(1, len(levels) // 200)], 1.0]  # no trial reaches the last
    early = {}
    for agreeing in AGREEING:
        found = [(ended(thoughts, threshold, agreeing), threshold) for threshold in thresholds]
        kept = [one for one in found if one[0].accuracy >= KEPT_ACCURACY * accuracy - 1e-9]
        point, threshold = min(kept, key=lambda one: one[0].tokens)
        early[str(agreeing)] = {
            "threshold": round(threshold, 6) if threshold <= 0 else None,
            "accuracy": round(point.accuracy, 4),
            "tokens": round(point.tokens / tokens, 4),
            "with_trials": round(point.with_trials / tokens, 4),
        }
    return {
        "every": EVERY,
        "summary": {"accuracy": round(accuracy, 4), "tokens": round(tokens, 2)},
        "early": early,
        "asked": sum(1 + len(thought.trials) for thought in thoughts),
    }


def _table(result: dict[str, Any]) -> Table:
    title = f"thoughts ended early, at {KEPT_ACCURACY:.0%} of the accuracy ({result['summary']['accuracy']:.1%})"
    table = Table("trials that agree", "threshold", "tokens", "with those of the trials", title=title)
    for agreeing, told in result["early"].items():
        threshold = "never" if told["threshold"] is None else f"{told['threshold']:.4f}"
        table.add_row(agreeing, threshold, f"{told['tokens']:.1%}", f"{told['with_trials']:.1%}")
    return table
