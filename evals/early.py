"""What ending thoughts early would save: once trial answers, drawn along a thought, agree and are confident.

Every item is thought through once, and again with growing budgets and the same seed, so that the thought is the same up
to there and the answer is a trial (DEER, arXiv 2504.15895). All else is arithmetic; the server needs no `early_end`
for it. Its own trials are greedy; these are drawn as the mode draws its answers.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from rich.table import Table

from evals.asking import Server, result_head, together
from evals.modes import options_of, run_held_out
from evals.thresholds import halves
from server.cli_errors import UsageError
from tasks.families import Item, held_out_items, score

EVERY = 32
"""Tokens from one trial to the next, where not given."""
MOST_TRIALS = 16
"""Of one thought."""
AGREEING = (1, 2, 3)
"""So many trials in a row have to say the same."""
KEPT_ACCURACY = 0.99
NEVER = 1.0
"""A threshold that no trial reaches."""


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
    family: str = ""


class Point(NamedTuple):
    """Mean score, tokens that a client would be given, and with them the tokens of all trials but the one kept."""

    accuracy: float
    tokens: float
    with_trials: float


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table and, where asked to, writes the result. Raises UsageError."""
    every = EVERY if args.every is None else args.every
    if every < 1:
        raise UsageError("--every must be at least 1")
    return run_held_out(args, partial(evaluate, every=every), _table)


async def evaluate(
    server: Server,
    names: Sequence[str],
    items: int,
    seed: int,
    most_tokens: int | None = None,
    *,
    every: int = EVERY,
) -> dict[str, Any]:
    """The result of `twogear eval early` with so many items of these families, tried `every` so many tokens."""
    version, mode = await server.version(), await server.mode_of_kind("thinking")
    bound = {} if most_tokens is None else {"max_completion_tokens": most_tokens}
    asked = enumerate(held_out_items(names, items, seed))
    fields = {**bound, "reasoning_mode": mode}
    thoughts = await together(
        "thinking", (_think(server, item, {**fields, "seed": seed + n}, every) for n, item in asked)
    )
    options = options_of(names, items, seed, most_tokens) + ("" if every == EVERY else f" --every {every}")
    return {**result_head("early", options, version), "every": every, **summarize(thoughts)}


async def _think(server: Server, item: Item, fields: dict[str, Any], every: int) -> Thought:
    whole = await server.ask(item.question.strip(), **fields)
    last = min(whole.reasoning_tokens - 1, every * MOST_TRIALS)
    trials = [await _try(server, item, {**fields, "thinking_token_budget": n}) for n in range(every, last + 1, every)]
    return Thought(score(item, whole.answer), whole.completion_tokens, trials, item.family)


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


def oracle(thoughts: Sequence[Thought]) -> Point:
    """If each thought ended at the first trial from which on all answers are at least as good as its own. No rule that
    looks at these trials saves more without losing something.
    """
    points = [_known(thought) for thought in thoughts]
    return Point(*(sum(values) / len(points) for values in zip(*points, strict=True)))


def _known(thought: Thought) -> Point:
    tokens, gained = thought.tokens, thought.score
    for trial in reversed(thought.trials):
        if trial.score < thought.score:
            break
        tokens, gained = trial.tokens, trial.score
    return Point(gained, tokens, tokens)


def summarize(thoughts: Sequence[Thought]) -> dict[str, Any]:
    """What the thoughts come to, as a result holds it. `tokens`: of those thought to the end, with nothing tried;
    `early`: for each number of agreeing trials the cheapest threshold that keeps the accuracy, shares of `tokens`;
    `held_out`: what thresholds that were found on one half of each family come to on the other half, both ways.
    """
    whole = ended(thoughts, NEVER, 1)
    best, early, held_out = oracle(thoughts), {}, {}
    one, other = ([thoughts[place] for place in half] for half in halves(thoughts))
    for agreeing in AGREEING:
        point, threshold = _cheapest(thoughts, agreeing)
        early[str(agreeing)] = {"threshold": _rounded(threshold), **_shares(point, whole)}
        told = [
            (ended(judged, _cheapest(found, agreeing)[1], agreeing), len(judged))
            for found, judged in ((one, other), (other, one))
            if found and judged
        ]
        held_out[str(agreeing)] = _shares(_mean_of(told), whole) if told else None
    return {
        "summary": {"accuracy": round(whole.accuracy, 4), "tokens": round(whole.tokens, 2)},
        "oracle": {"accuracy": round(best.accuracy, 4), "tokens": round(best.tokens / whole.tokens, 4)},
        "early": early,
        "held_out": held_out,
        "asked": sum(1 + len(thought.trials) for thought in thoughts),
    }


def _cheapest(thoughts: Sequence[Thought], agreeing: int) -> tuple[Point, float]:
    """The cheapest threshold that keeps the accuracy, and what it comes to."""
    accuracy = sum(thought.score for thought in thoughts) / len(thoughts)
    levels = sorted({trial.confidence for thought in thoughts for trial in thought.trials})
    thresholds = [*levels[:: max(1, len(levels) // 200)], NEVER]
    found = [(ended(thoughts, threshold, agreeing), threshold) for threshold in thresholds]
    kept = [one for one in found if one[0].accuracy >= KEPT_ACCURACY * accuracy - 1e-9]
    return min(kept, key=lambda one: one[0].tokens)


def _mean_of(points: Sequence[tuple[Point, int]]) -> Point:
    """Of points that stand for so many thoughts each."""
    count = sum(number for _, number in points)
    return Point(*(sum(point[field] * number for point, number in points) / count for field in range(3)))


def _rounded(threshold: float) -> float | None:
    return round(threshold, 6) if threshold < NEVER else None


def _shares(point: Point, whole: Point) -> dict[str, float]:
    """Tokens as shares of those of the whole thoughts."""
    return {
        "accuracy": round(point.accuracy, 4),
        "tokens": round(point.tokens / whole.tokens, 4),
        "with_trials": round(point.with_trials / whole.tokens, 4),
    }


def _table(result: dict[str, Any]) -> Table:
    title = f"thoughts ended early, at {KEPT_ACCURACY:.0%} of the accuracy ({result['summary']['accuracy']:.1%})"
    table = Table("trials that agree", "threshold", "tokens", "with those of the trials", "on other items", title=title)
    for agreeing, told in result["early"].items():
        threshold = "never" if told["threshold"] is None else f"{told['threshold']:.4f}"
        held = result["held_out"][agreeing]
        other = "" if held is None else f"{held['accuracy']:.1%} right with {held['tokens']:.1%}"
        table.add_row(agreeing, threshold, f"{told['tokens']:.1%}", f"{told['with_trials']:.1%}", other)
    best = result["oracle"]
    table.add_row("the oracle", "", f"{best['tokens']:.1%}", "", f"{best['accuracy']:.1%} right")
    return table
