"""`twogear calibrate`: finds the threshold by which a mode of kind `auto` does what is wished, on a running server.

Asks every question in both modes, fits weights and threshold on every other one of each family, and tells what they
come to on the rest, which they have not seen.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import msgspec
from rich.console import Console
from rich.table import Table

from evals.asking import Server, with_server
from evals.auto import Kinds, Question, kinds_of, recorded
from evals.fitting import FITTED, fitted_weights
from evals.modes import AT_ONCE, chosen_families
from evals.thresholds import Pair, Point, all_weighed, best, cheapest, curve, halves, modes_alone
from server.cli_errors import UsageError
from server.modes.confidence import Named, Signal, Weights
from server.urls import server_url
from tasks.families import held_out_items

HELP = "find the threshold of a mode of kind auto for a running server, and write it as a part of a profile"
LEAST_ITEMS = 20
DIGITS = 10**6
"""By which a threshold is rounded down, so that what it was fitted to is kept."""


class Wish(NamedTuple):
    """`accuracy_loss` in percent of the thinking mode's accuracy, or `tokens` as a share of its tokens; one of them."""

    accuracy_loss: float | None
    tokens: float | None


class Fit(NamedTuple):
    """The threshold of a `signal`, with what it came to where it was fitted and on what was held out; and both modes
    there. `curve`: of all thresholds, on all questions.
    """

    signal: Signal
    fitted: Point
    held_out: Point
    direct: Point
    thinking: Point
    curve: list[Point]


class Asked(NamedTuple):
    """What the server answered: its name for the model, its two modes, and the pairs."""

    model: str
    kinds: Kinds
    pairs: list[Pair]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--url", type=server_url, default="http://127.0.0.1:8000", help="the server")
    parser.add_argument("--items", type=int, default=200, help="questions, each asked in both modes")
    parser.add_argument("--seed", type=int, default=0, help="which questions are drawn")
    parser.add_argument("--families", help="comma-separated reasoning-gym families of the questions")
    parser.add_argument(
        "--questions", type=Path, metavar="FILE", help="instead: a JSON object a line, with question and answer"
    )
    wish = parser.add_mutually_exclusive_group()
    wish.add_argument(
        "--accuracy-loss", type=float, help="at most so many percent of the thinking mode's accuracy; 1 if not given"
    )
    wish.add_argument("--tokens", type=float, help="at most so large a share of the thinking mode's tokens, 0 to 1")
    parser.add_argument("--signal", choices=(*get_args(Named), FITTED), default=FITTED, help="what is looked at")
    parser.add_argument("--draft-tokens", type=int, default=32, help="so many tokens of a draft are looked at, at most")
    parser.add_argument("--most-tokens", type=int, help="thought and answer at most")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the part of the profile goes, else printed")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the curve goes, for a plot; to no file if not given"
    )


def run(args: argparse.Namespace) -> int:
    """Asks, fits, prints how it holds and writes the part of the profile. Raises UsageError."""
    if args.items < LEAST_ITEMS:
        raise UsageError(f"--items must be at least {LEAST_ITEMS}")
    if args.draft_tokens < 1:
        raise UsageError("--draft-tokens must be at least 1")
    loss = 1.0 if args.accuracy_loss is None and args.tokens is None else args.accuracy_loss
    questions = _drawn(args) if args.questions is None else read_questions(args.questions)
    asked = with_server(args.url, AT_ONCE, lambda server: _ask(server, questions, args.most_tokens))
    fit = fitted(asked.pairs, Wish(loss, args.tokens), args.signal, args.draft_tokens)
    Console().print(_table(fit, asked.kinds))
    part = profile_part(asked, fit, args.draft_tokens)
    if args.output is None:
        print(part, end="")
    else:
        args.output.write_text(part)
    if args.json is not None:
        args.json.write_text(json.dumps(curve_of(asked.kinds, fit), indent=1) + "\n")
    return 0


def read_questions(path: Path) -> list[Question]:
    """Of a file; an answer is right where it is the same text, but for case and blanks around it. Raises UsageError."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [msgspec.json.decode(line, type=_Line) for line in lines]
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise UsageError(f"--questions {path}: {error}") from error
    if len(found) < LEAST_ITEMS:
        raise UsageError(f"--questions {path} has {len(found)} questions; at least {LEAST_ITEMS} are needed")
    return [Question(one.family, one.question, _same(one.answer)) for one in found]


def fitted(pairs: Sequence[Pair], wish: Wish, name: str, draft_tokens: int) -> Fit:
    """Of every other pair of each family, and what it comes to on the rest. `name`: the signal's, or FITTED.

    Raises UsageError where no threshold does what is wished.
    """
    fit, rest = ([pairs[place] for place in half] for half in halves(pairs))
    _, thinking = modes_alone(fit)
    signal = _signal(fit, name, draft_tokens)
    points = curve(fit, all_weighed(fit, signal, draft_tokens), draft_tokens)
    if wish.tokens is not None:
        found = best(points, wish.tokens * thinking.tokens)
    else:
        found = cheapest(points, thinking.accuracy * (1 - (wish.accuracy_loss or 0.0) / 100) - 1e-9)
    if found is None or found.threshold > 0:
        raise UsageError("no threshold does what is wished: on these questions it is best to think always")
    unseen, whole = (curve(some, all_weighed(some, signal, draft_tokens), draft_tokens) for some in (rest, pairs))
    held = [point for point in unseen if point.threshold >= found.threshold]
    return Fit(signal, found, held[-1], *modes_alone(rest), whole)


def profile_part(asked: Asked, fit: Fit, draft_tokens: int) -> str:
    """A mode, in TOML."""
    count, held = len(halves(asked.pairs)[1]), fit.held_out
    direct, thinking = asked.kinds.direct, asked.kinds.thinking
    alone = ", ".join(
        f"{name} {point.accuracy:.1%} with {point.tokens:.1f}"
        for name, point in ((direct, fit.direct), (thinking, fit.thinking))
    )
    return "\n".join(
        [
            f"# On {count} questions that were not fitted: {held.accuracy:.1%} right with {held.tokens:.1f} tokens;",
            f"# {alone}.",
            "[modes.auto]",
            'kind = "auto"',
            f"direct = {json.dumps(direct)}",
            f"thinking = {json.dumps(thinking)}",
            f"signal = {_toml(fit.signal)}",
            f"draft_tokens = {draft_tokens}",
            f"threshold = {math.floor(fit.fitted.threshold * DIGITS) / DIGITS}",
            f"calibrated_for = {json.dumps(asked.model)}",
            "",
        ]
    )


def curve_of(kinds: Kinds, fit: Fit) -> dict[str, Any]:
    """What is drawn: all thresholds on all questions; both modes and the threshold on those that were held out."""
    held = {kinds.direct: fit.direct, kinds.thinking: fit.thinking, "auto": fit.held_out}
    return {
        "what": "calibrate",
        "threshold": fit.fitted.threshold,
        "held_out": {name: _told(point) for name, point in held.items()},
        "curve": [_told(one) for one in fit.curve],
    }


def _signal(pairs: Sequence[Pair], name: str, draft_tokens: int) -> Signal:
    if name != FITTED:
        return cast("Named", name)
    weights = fitted_weights(pairs, draft_tokens)
    if weights is None:
        raise UsageError("all drafts were right, or all wrong: no signal can be fitted to these questions")
    return weights


def _toml(signal: Signal) -> str:
    if not isinstance(signal, Weights):
        return json.dumps(signal)
    told = ", ".join(f"{name} = {value}" for name, value in msgspec.structs.asdict(signal).items() if value)
    return f"{{ {told} }}"


class _Line(msgspec.Struct):
    question: str
    answer: str
    family: str = "questions"


def _same(answer: str) -> Callable[[str], float]:
    return lambda said: float(said.strip().casefold() == answer.strip().casefold())


def _drawn(args: argparse.Namespace) -> list[Question]:
    return [Question.of(item) for item in held_out_items(chosen_families(args), args.items, args.seed)]


async def _ask(server: Server, questions: Sequence[Question], most_tokens: int | None) -> Asked:
    kinds, model = await kinds_of(server), await server.model()
    return Asked(model, kinds, await recorded(server, questions, kinds, most_tokens))


def _table(fit: Fit, kinds: Kinds) -> Table:
    table = Table("", "right", "tokens", title=f"held-out questions, threshold {fit.fitted.threshold:.4f}")
    for name, point in ((kinds.direct, fit.direct), (kinds.thinking, fit.thinking), ("auto", fit.held_out)):
        table.add_row(name, f"{point.accuracy:.1%}", f"{point.tokens:.1f}")
    return table


def _told(point: Point) -> dict[str, Any]:
    return {
        "threshold": point.threshold if -math.inf < point.threshold <= 0 else None,
        "accuracy": point.accuracy,
        "tokens": point.tokens,
    }
