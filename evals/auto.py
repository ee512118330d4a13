"""What a mode of kind `auto` would come to, by every signal and threshold, beside both modes, a mix and an oracle.

Each item is answered once in each mode, the direct answer with its log-probabilities; all else is arithmetic
(evals/thresholds.py), so that the server needs no such mode.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

from rich.table import Table

from evals.asking import Server, result_head, together
from evals.fitting import FITTED, cross_fitted
from evals.modes import options_of, run_held_out
from evals.thresholds import (
    Drawn,
    Pair,
    Point,
    Weighed,
    agreed,
    all_weighed,
    area,
    auc,
    cheapest,
    curve,
    modes_alone,
    oracle,
    trial_tokens,
)
from server.cli_errors import UsageError
from server.modes.confidence import ENTROPY_TOP, Named
from server.modes.profile import AutoMode, load_profile
from tasks.families import Item, held_out_items, score

DRAFTS = (4, 8, 16, 32)
"""How many tokens of a draft are looked at, at most."""
KEPT_ACCURACY = (0.99, 1.0)
"""Shares of the thinking mode's accuracy at which the tokens are told."""
MOST_POINTS = 50
"""Of a curve in a result."""
AGREEMENT = "agreement"
"""How the signal is called that trials give."""
MOST_TRIALS = 16


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


class Extras(NamedTuple):
    """What is looked at beside all signals: so many `trials` of each question, and the mode of kind `auto` of a
    `profile`, with the name of its file.
    """

    trials: int = 0
    profile: str | None = None
    mode: AutoMode | None = None

    @property
    def options(self) -> str:
        """As the command line has them."""
        trials = f" --trials {self.trials}" if self.trials else ""
        return trials + (f" --profile {self.profile}" if self.profile is not None else "")


NO_EXTRAS = Extras()


class Looked(NamedTuple):
    """A signal of all drafts, and the mean of the tokens that were drawn for it `beside` them."""

    drafts: Sequence[Weighed]
    beside: float = 0.0


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table and, where asked to, writes the result. Raises UsageError."""
    trials = args.trials or 0
    if not 0 <= trials <= MOST_TRIALS:
        raise UsageError(f"--trials must be 0 to {MOST_TRIALS}")
    extras = Extras(trials, None if args.profile is None else str(args.profile), _mode_of(args.profile))
    return run_held_out(args, partial(evaluate, level=args.level, extras=extras), _table)


def _mode_of(path: Path | None) -> AutoMode | None:
    if path is None:
        return None
    modes = load_profile(path).modes.values()
    found = next((mode for mode in modes if isinstance(mode, AutoMode) and mode.threshold is not None), None)
    if found is None:
        raise UsageError(f"--profile {path} has no mode of kind auto with a threshold")
    return found


async def evaluate(
    server: Server,
    names: Sequence[str],
    items: int,
    seed: int,
    most_tokens: int | None = None,
    *,
    level: int | None = None,
    extras: Extras = NO_EXTRAS,
) -> dict[str, Any]:
    """The result of `twogear eval auto` with so many items of these families, `level` as in `tasks.families.draw`."""
    version, kinds = await server.version(), await kinds_of(server)
    drawn = held_out_items(names, items, seed, level=level)
    pairs = await recorded(server, map(Question.of, drawn), kinds, most_tokens, extras.trials)
    options = options_of(names, items, seed, most_tokens) + ("" if level is None else f" --level {level}")
    asked = (2 + bool(extras.trials)) * len(pairs)
    head = result_head("auto", options + extras.options, version)
    return {**head, "asked": asked, **summarize(pairs, kinds, extras.mode)}


async def kinds_of(server: Server) -> Kinds:
    """The first mode of each kind. Raises UsageError where the server lacks one."""
    return Kinds(await server.mode_of_kind("direct"), await server.mode_of_kind("thinking"))


async def recorded(
    server: Server, questions: Iterable[Question], kinds: Kinds, most_tokens: int | None = None, trials: int = 0
) -> list[Pair]:
    """Every question in both modes; answers are `most_tokens` at most, if given. `trials`: so many other beginnings of
    direct answers.
    """
    return await together("asking", (_pair(server, one, kinds, most_tokens, trials) for one in questions))


async def _pair(server: Server, question: Question, kinds: Kinds, most_tokens: int | None, trials: int) -> Pair:
    bound = {} if most_tokens is None else {"max_completion_tokens": most_tokens}
    asked = {"messages": [{"role": "user", "content": question.text}], "reasoning_mode": kinds.direct, **bound}
    shown = {"logprobs": True, "top_logprobs": ENTROPY_TOP, "return_token_ids": True}
    direct = await server.complete({**asked, **shown})
    thinking = await server.ask(question.text, reasoning_mode=kinds.thinking, **bound)
    (choice,) = direct["choices"]
    return Pair(
        family=question.family,
        direct_score=question.score(choice["message"]["content"] or ""),
        thinking_score=question.score(thinking.answer),
        direct_tokens=direct["usage"]["completion_tokens"],
        thinking_tokens=thinking.completion_tokens,
        entries=[_entry(one) for one in (choice["logprobs"] or {}).get("content", ())],
        ids=tuple(choice["token_ids"]),
        trials=await trials_of(server, question, kinds, trials) if trials else (),
    )


async def trials_of(server: Server, question: Question, kinds: Kinds, trials: int) -> tuple[tuple[int, ...], ...]:
    """The first tokens of so many direct answers, each drawn from all that the model holds possible."""
    reply = await server.complete(
        {
            "messages": [{"role": "user", "content": question.text}],
            "reasoning_mode": kinds.direct,
            "n": trials,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_completion_tokens": DRAFTS[-1],
            "return_token_ids": True,
        }
    )
    return tuple(tuple(choice["token_ids"]) for choice in reply["choices"])


def _entry(told: dict[str, Any]) -> Drawn:
    """The ids do not count."""
    return Drawn(told["logprob"], [(0, one["logprob"]) for one in told["top_logprobs"]])


def summarize(pairs: Sequence[Pair], kinds: Kinds, mode: AutoMode | None = None) -> dict[str, Any]:
    """What the pairs come to, as a result holds it; with the rule of a `mode`, what that comes to."""
    direct, thinking = modes_alone(pairs)
    longest = max(pair.direct_tokens for pair in pairs)
    drafts = [length for length in DRAFTS if length < longest] + [longest]
    best = oracle(pairs, longest)
    found = {length: _signals(pairs, length) for length in drafts}
    signals = {
        name: {str(length): _told(pairs, found[length][name], length) for length in drafts} for name in found[longest]
    }
    return {
        "modes": {"direct": kinds.direct, "thinking": kinds.thinking},
        "summary": {kinds.direct: round(direct.accuracy, 4), kinds.thinking: round(thinking.accuracy, 4)},
        "tokens": {kinds.direct: round(direct.tokens, 2), kinds.thinking: round(thinking.tokens, 2)},
        "longest": {kinds.direct: longest, kinds.thinking: max(pair.thinking_tokens for pair in pairs)},
        "oracle": _rounded(best),
        "signals": signals,
        "curves": {
            name: [_rounded(one) for one in _few(_points(pairs, looked, longest))]
            for name, looked in found[longest].items()
        },
        "families": {
            name: {kinds.direct: round(one.accuracy, 4), kinds.thinking: round(other.accuracy, 4)}
            for name, own in _by_family(pairs).items()
            for one, other in [modes_alone(own)]
        },
        **({} if mode is None else {"profile": _of_mode(pairs, mode)}),
    }


def _by_family(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    return {name: [pair for pair in pairs if pair.family == name] for name in sorted({pair.family for pair in pairs})}


def _of_mode(pairs: Sequence[Pair], mode: AutoMode) -> dict[str, Any]:
    """What its threshold comes to: in all, and the accuracy in each family."""
    assert mode.threshold is not None
    threshold, length = mode.threshold, mode.draft_tokens

    def at(some: Sequence[Pair]) -> Point:
        points = curve(some, all_weighed(some, mode.signal, length), length)
        return [point for point in points if point.threshold >= threshold][-1]

    kept = [draft.signal >= threshold for draft in all_weighed(pairs, mode.signal, length)]
    return {
        "draft_tokens": length,
        **_rounded(at(pairs)._replace(threshold=threshold)),
        "kept": round(sum(kept) / len(kept), 4),
        "families": {name: round(at(own).accuracy, 4) for name, own in _by_family(pairs).items()},
    }


def _signals(pairs: Sequence[Pair], length: int) -> dict[str, Looked]:
    """Each one's of all drafts; that of fitted weights by those that did not see the draft, where there are such, and
    that of trials where there are any.
    """
    named = {name: Looked(all_weighed(pairs, name, length)) for name in get_args(Named)}
    fitted = cross_fitted(pairs, length)
    if fitted is not None:
        named[FITTED] = Looked(fitted)
    if all(pair.trials for pair in pairs):
        named[AGREEMENT] = Looked([agreed(pair, length) for pair in pairs], trial_tokens(pairs, length))
    return named


def _points(pairs: Sequence[Pair], looked: Looked, length: int) -> list[Point]:
    """Of all thresholds, with the tokens that were drawn beside the drafts."""
    points = curve(pairs, looked.drafts, length)
    return [point._replace(tokens=point.tokens + looked.beside) for point in points]


def _told(pairs: Sequence[Pair], looked: Looked, length: int) -> dict[str, Any]:
    """Of one signal over so many tokens: how well it tells right from wrong, and what that saves.

    `tokens`: by the share of the thinking mode's accuracy that is kept, the share of its tokens; `saving`: of what the
    oracle saves. `area`: over the random mix, as a share of the oracle's.
    """
    direct, thinking = modes_alone(pairs)
    points, best, found = _points(pairs, looked, length), oracle(pairs, length), auc(pairs, looked.drafts)
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
    best, own = result["oracle"], result.get("profile")
    if own is not None:
        table.add_row("the profile's", "", "", f"{own['tokens']:.1f} tokens", f"{own['accuracy']:.1%} right")
    table.add_row("oracle", "", "", f"{best['tokens']:.1f} tokens", f"{best['accuracy']:.1%} right")
    return table
