"""Accuracy of a running server per mode and family, and how often a mode behaves like the other, through its HTTP API.

Items and scores are reasoning-gym's, drawn from the held-out questions at the embedded checkpoint's difficulty
(tasks/families.py). Nothing here knows the engine or the model.
"""

import argparse
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from evals import confusion
from evals.asking import Server, result_head, sampled, show_result, together, with_server
from server.cli_errors import UsageError
from tasks.families import EMBEDDED, FAMILIES, Item, held_out_items, score

AT_ONCE = 32


@dataclass(frozen=True)
class Outcome:
    """One item in one mode: what came back, its score from 0 to 1, and its signs of the other kind."""

    family: str
    mode: str
    question: str
    expected: str
    answer: str
    score: float
    completion_tokens: int
    reasoning_tokens: int
    reasoning_finish_reason: str | None
    confusion: list[str]
    trial_tokens: int = 0


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table and, where asked to, writes the result. Raises UsageError."""
    return run_held_out(args, evaluate, _table)


async def evaluate(
    server: Server, names: Sequence[str], items: int, seed: int, most_tokens: int | None = None
) -> dict[str, Any]:
    """The result of `twogear eval modes` with so many items of these families, in each mode that does not choose."""
    modes = {name: kind for name, kind in (await server.modes()).items() if kind != "auto"}
    version, outcomes = await measure(server, list(held_out_items(names, items, seed)), modes, most_tokens)
    options = options_of(names, items, seed, most_tokens)
    return {**result_head("modes", options, version), **summarize(names, outcomes, modes)}


def chosen_families(args: argparse.Namespace) -> tuple[str, ...]:
    """The families that the options name. Raises UsageError."""
    names = EMBEDDED if args.families is None else tuple(args.families.split(","))
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise UsageError(f"--families: {unknown[0]!r} is none of {', '.join(FAMILIES)}")
    if args.items < len(names):
        raise UsageError(f"--items must be at least {len(names)}, one for each family")
    return names


def run_held_out(
    args: argparse.Namespace,
    evaluate: Callable[[Server, Sequence[str], int, int, int | None], Coroutine[Any, Any, dict[str, Any]]],
    table: Callable[[dict[str, Any]], Table],
) -> int:
    """What evaluations on held-out items of chosen families do with their arguments. Raises UsageError."""
    names = chosen_families(args)
    result = with_server(
        args.url, AT_ONCE, lambda server: evaluate(server, names, args.items, args.seed, args.most_tokens)
    )
    show_result(result, table(result), args.json)
    return 0


def options_of(names: Sequence[str], items: int, seed: int, most_tokens: int | None) -> str:
    """The command line's options that ask just this."""
    bound = "" if most_tokens is None else f" --most-tokens {most_tokens}"
    return f"--items {items} --seed {seed} --families {','.join(names)}{bound}"


async def measure(
    server: Server, items: Sequence[Item], modes: Mapping[str, str], most_tokens: int | None = None
) -> tuple[dict[str, Any], list[Outcome]]:
    """The server's version, and every item's outcome in each of `modes` (name and kind); answers are `most_tokens` at
    most, if given.
    """
    version = await server.version()
    jobs = (_ask(server, item, mode, kind, most_tokens) for item in items for mode, kind in modes.items())
    return version, await together("asking", jobs)


async def _ask(server: Server, item: Item, mode: str, kind: str, most_tokens: int | None) -> Outcome:
    """One question with the server's own sampling for the mode, and its own budgets where no other is given."""
    bound = {} if most_tokens is None else {"max_completion_tokens": most_tokens}
    reply = await server.ask(item.question.strip(), reasoning_mode=mode, return_token_ids=True, **bound)
    if kind == "direct":
        signs = confusion.direct_signs(item, reply.answer, await server.spelt_out(reply.token_ids))
    else:
        signs = confusion.thinking_signs(item, reply.reasoning, reply.reasoning_finish_reason)
    return Outcome(
        family=item.family,
        mode=mode,
        question=item.question,
        expected=item.answer,
        answer=reply.answer,
        score=score(item, reply.answer),
        completion_tokens=reply.completion_tokens,
        reasoning_tokens=reply.reasoning_tokens,
        reasoning_finish_reason=reply.reasoning_finish_reason,
        confusion=signs,
        trial_tokens=reply.trial_tokens,
    )


def _mean(outcomes: Sequence[Outcome], mode: str, family: str | None = None) -> float:
    scores = [o.score for o in outcomes if o.mode == mode and family in (None, o.family)]
    return round(sum(scores) / len(scores), 4)


def _tokens(outcomes: Sequence[Outcome], mode: str) -> dict[str, float]:
    """Means of a mode: all that was answered, the thinking in it, and the trials beside it."""
    own = [outcome for outcome in outcomes if outcome.mode == mode]
    fields = {"all": "completion_tokens", "reasoning": "reasoning_tokens", "trials": "trial_tokens"}
    return {name: round(sum(getattr(one, field) for one in own) / len(own), 2) for name, field in fields.items()}


def summarize(
    names: Sequence[str], outcomes: Sequence[Outcome], modes: Mapping[str, str], *, level: int | None = None
) -> dict[str, Any]:
    """What was measured, with a sample of the outcomes, as a result holds it; `level` is the items' (families.draw)."""
    told = [asdict(outcome) for outcome in outcomes]
    kept = sampled(outcomes, lambda outcome: outcome.score == 1.0)
    return {
        "difficulty": {name: dict(FAMILIES[name].config_at(level)) for name in names},
        "summary": {mode: _mean(outcomes, mode) for mode in modes},
        "tokens": {mode: _tokens(outcomes, mode) for mode in modes},
        "families": {name: {mode: _mean(outcomes, mode, name) for mode in modes} for name in names},
        "confusion": {mode: confusion.shares(told, mode, kind) for mode, kind in modes.items()},
        "asked": len(outcomes),
        "outcomes": [asdict(outcome) for outcome in kept],
    }


def _told(tokens: Mapping[str, float]) -> str:
    return f"{tokens['all']:.1f}" + (f" + {tokens['trials']:.1f} tried" if tokens["trials"] else "")


def _table(result: dict[str, Any]) -> Table:
    modes = list(result["summary"])
    table = Table("family", *modes, title="accuracy on held-out items")
    rows = [*result["families"].items(), ("all", result["summary"])]
    for name, accuracy in rows:
        if name == "all":
            table.add_section()
        table.add_row(name, *(f"{accuracy[mode] * 100:.1f} %" for mode in modes))
    table.add_section()
    table.add_row("tokens", *(_told(result["tokens"][mode]) for mode in modes))
    table.add_row("like the other kind", *(f"{result['confusion'][mode]['any'] * 100:.1f} %" for mode in modes))
    return table
