"""What a mode of kind `auto` would come to, by every signal and threshold, beside both modes, a mix and an oracle.

Each item is answered once in each mode, the direct answer with its log-probabilities; all else is arithmetic
(evals/thresholds.py), so that the server needs no such mode.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

from rich.table import Table

from evals.asking import Server, result_head, together
from evals.fitting import FITTED, cross_fitted
from evals.modes import options_of, run_held_out
from evals.thresholds import Drawn, Pair, Point, Weighed, all_weighed, area, auc, cheapest, curve, modes_alone, oracle
from server.modes.confidence import ENTROPY_TOP, Named
from tasks.families import Item, held_out_items, score

DRAFTS = (4, 8, 16, 32)
"""How many tokens of a draft are looked at, at most."""
KEPT_ACCURACY = (0.99, 1.0)
"""Shares of the thinking mode's accuracy at which the tokens are told."""
MOST_POINTS = 50
"""Of a curve in a result."""


class Question(NamedTuple):
    """What is asked, and how an answer to it scores, from 0 to 1."""

    family: str
    text: str
    score: Callable[[str], float]

    @classmethod
    def of(cls, item: Item) -> "Question":
        """One of reasoning-gym's."""
        return cls(item.family, item.question.strip(), partial(score, item))


@dataclass(frozen=True)
class Kinds:
    """The two modes between which is chosen, by their names."""

    direct: str
    thinking: str


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table and, where asked to, writes the result. Raises UsageError."""
    return run_held_out(args, partial(evaluate, level=args.level), _table)


async def evaluate(
    server: Server,
    names: Sequence[str],
    items: int,
    seed: int,
    most_tokens: int | None = None,
    *,
    level: int | None = None,
) -> dict[str, Any]:
    """The result of `twogear eval auto` with so many items of these families, `level` as in `tasks.families.draw`."""
    version, kinds = await server.version(), await kinds_of(server)
    drawn = held_out_items(names, items, seed, level=level)
    pairs = await recorded(server, map(Question.of, drawn), kinds, most_tokens)
    options = options_of(names, items, seed, most_tokens) + ("" if level is None else f" --level {level}")
    return {**result_head("auto", options, version), "asked": 2 * len(pairs), **summarize(pairs, kinds)}


async def kinds_of(server: Server) -> Kinds:
    """The first mode of each kind. Raises UsageError where the server lacks one."""
    return Kinds(await server.mode_of_kind("direct"), await server.mode_of_kind("thinking"))


async def recorded(
    server: Server, questions: Iterable[Question], kinds: Kinds, most_tokens: int | None = None
) -> list[Pair]:
    """Every question in both modes; answers are `most_tokens` at most, if given."""
    return await together("asking", (_pair(server, one, kinds, most_tokens) for one in questions))


async def _pair(server: Server, question: Question, kinds: Kinds, most_tokens: int | None) -> Pair:
    bound = {} if most_tokens is None else {"max_completion_tokens": most_tokens}
    asked = {"messages": [{"role": "user", "content": question.text}], "reasoning_mode": kinds.direct, **bound}
    direct = await server.complete({**asked, "logprobs": True, "top_logprobs": ENTROPY_TOP})
    thinking = await server.ask(question.text, reasoning_mode=kinds.thinking, **bound)
    (choice,) = direct["choices"]
    return Pair(
        family=question.family,
        direct_score=question.score(choice["message"]["content"] or ""),
        thinking_score=question.score(thinking.answer),
        direct_tokens=direct["usage"]["completion_tokens"],
        thinking_tokens=thinking.completion_tokens,
        entries=[_entry(one) for one in (choice["logprobs"] or {}).get("content", ())],
    )


def _entry(told: dict[str, Any]) -> Drawn:
    """The ids do not count."""
    return Drawn(told["logprob"], [(0, one["logprob"]) for one in told["top_logprobs"]])


def summarize(pairs: Sequence[Pair], kinds: Kinds) -> dict[str, Any]:
    """What the pairs come to, as a result holds it."""
    direct, thinking = modes_alone(pairs)
    longest = max(pair.direct_tokens for pair in pairs)
    drafts = [length for length in DRAFTS if length < longest] + [longest]
    best = oracle(pairs, longest)
    found = {length: _signals(pairs, length) for length in drafts}
    signals = {
        name: {str(length): _told(pairs, found[length][name], length) for length in drafts} for name in found[longest]
    }
    families = sorted({pair.family for pair in pairs})
    return {
        "modes": {"direct": kinds.direct, "thinking": kinds.thinking},
        "summary": {kinds.direct: round(direct.accuracy, 4), kinds.thinking: round(thinking.accuracy, 4)},
        "tokens": {kinds.direct: round(direct.tokens, 2), kinds.thinking: round(thinking.tokens, 2)},
        "longest": {kinds.direct: longest, kinds.thinking: max(pair.thinking_tokens for pair in pairs)},
        "oracle": _rounded(best),
        "signals": signals,
        "curves": {
            name: [_rounded(one) for one in _few(curve(pairs, values, longest))]
            for name, values in found[longest].items()
        },
        "families": {
            name: {kinds.direct: round(one.accuracy, 4), kinds.thinking: round(other.accuracy, 4)}
            for name in families
            for one, other in [modes_alone([pair for pair in pairs if pair.family == name])]
        },
    }


def _signals(pairs: Sequence[Pair], length: int) -> dict[str, list[Weighed]]:
    """Each one's of all drafts; that of fitted weights by those that did not see the draft, where there are such."""
    named = {name: all_weighed(pairs, name, length) for name in get_args(Named)}
    fitted = cross_fitted(pairs, length)
    return named if fitted is None else {**named, FITTED: fitted}


def _told(pairs: Sequence[Pair], drafts: Sequence[Weighed], length: int) -> dict[str, Any]:
    """Of one signal over so many tokens: how well it tells right from wrong, and what that saves.

    `tokens`: by the share of the thinking mode's accuracy that is kept, the share of its tokens; `saving`: of what the
    oracle saves. `area`: over the random mix, as a share of the oracle's.
    """
    direct, thinking = modes_alone(pairs)
    points, best, found = curve(pairs, drafts, length), oracle(pairs, length), auc(pairs, drafts)
    told: dict[str, Any] = {"auc": None if found is None else round(found, 4), "tokens": {}, "saving": {}}
    for share in KEPT_ACCURACY:
        point = cheapest(points, share * thinking.accuracy - 1e-9) or thinking
        told["tokens"][str(share)] = round(point.tokens / thinking.tokens, 4)
        saved = thinking.tokens - best.tokens
        told["saving"][str(share)] = round((thinking.tokens - point.tokens) / saved, 4) if saved > 0 else None
    whole = area([direct, best, points[0]], direct, thinking)
    told["area"] = round(area(points, direct, thinking) / whole, 4) if whole > 0 else None
    return told


def _few(points: Sequence[Point]) -> Sequence[Point]:
    """At even distances, the first and the last among them."""
    last = len(points) - 1
    if last < MOST_POINTS:
        return points
    return [points[turn * last // (MOST_POINTS - 1)] for turn in range(MOST_POINTS)]


def _rounded(point: Point) -> dict[str, float | None]:
    threshold = round(point.threshold, 4) if math.isfinite(point.threshold) else None
    return {"threshold": threshold, "accuracy": round(point.accuracy, 4), "tokens": round(point.tokens, 2)}


def _table(result: dict[str, Any]) -> Table:
    table = Table("signal", "tokens looked at", "AUC", "tokens at 99 %", "of the oracle's saving", title="choosing")
    for signal, lengths in result["signals"].items():
        for length, told in lengths.items():
            saving, found = told["saving"]["0.99"], told["auc"]
            shares = [f"{told['tokens']['0.99']:.0%}", "" if saving is None else f"{saving:.0%}"]
            table.add_row(signal, length, "" if found is None else f"{found:.3f}", *shares)
        table.add_section()
    for mode, accuracy in result["summary"].items():
        table.add_row(mode, "", "", f"{result['tokens'][mode]:.1f} tokens", f"{accuracy:.1%} right")
    best = result["oracle"]
    table.add_row("oracle", "", "", f"{best['tokens']:.1f} tokens", f"{best['accuracy']:.1%} right")
    return table
