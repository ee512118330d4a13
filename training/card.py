"""The card of a promoted checkpoint: what it is, what it can do by the evaluations, and what made it."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.goals import Goal

_INTRODUCTION = """A hybrid-reasoning model of the EXAONE 4.0 architecture, small enough to serve on a laptop, trained
from scratch by this repository. It is for trying and testing the server.
"""
_LIMITS = """## Limits

It knows nothing but these tasks. Words that it has not seen are copied wrong now and then. Numbers longer than it has
seen (three digits in sums, two in products) go wrong. At temperature 0.6 a generation can run into repetition: give a
limit. Of several holders of one code it has learnt little. Other languages are not trained.
"""


def card(
    name: str,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    goals: Sequence[Goal],
    results: Mapping[str, Mapping[str, Any]],
) -> str:
    """The text of README.md."""
    parts = [
        f"# {name}\n\n{_INTRODUCTION}",
        _shape(config),
        _abilities(results),
        _goals(goals),
        _training(record),
        _LIMITS,
    ]
    return "\n".join(parts)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shape(config: Mapping[str, Any]) -> str:
    rows = [
        (
            "layers, width, MLP",
            f"{config['num_hidden_layers']}, {config['hidden_size']}, {config['intermediate_size']}",
        ),
        ("sliding window", f"{config['sliding_window']} tokens, in three of four layers"),
        ("heads, KV heads, head size", _listed(config, "num_attention_heads", "num_key_value_heads", "head_dim")),
        ("positions", f"{config['max_position_embeddings']:,}"),
        ("vocabulary", f"{config['vocab_size']:,}"),
    ]
    return _rows(("", ""), rows)


def _listed(config: Mapping[str, Any], *fields: str) -> str:
    return ", ".join(str(config[field]) for field in fields)


def _abilities(results: Mapping[str, Mapping[str, Any]]) -> str:
    parts = ["## What it can do\n"]
    for what, shares in (("modes", "families"), ("tools", "kinds")):
        result = results[what]
        named = [*result[shares].items(), ("all", result["summary"])]
        rows = [(name, *(f"{share * 100:.1f} %" for share in by_mode.values())) for name, by_mode in named]
        head = (shares, *result["summary"])
        parts.append(f"`{result['command']}`, of a server with its defaults:\n\n{_rows(head, rows)}")
    needles = results["needles"]["summary"]
    parts.append(
        f"Codes in long texts (`{results['needles']['command']}`): {needles['worst'] * 100:.1f} % in the worst cell, "
        f"{needles['mean'] * 100:.1f} % on average.\n"
    )
    return "\n".join(parts)


def _goals(goals: Sequence[Goal]) -> str:
    rows = [
        (goal.name, f"{goal.least:.1f}", f"{goal.found:.1f}", "yes" if goal.is_reached else "**no**") for goal in goals
    ]
    below = [goal.name for goal in goals if not goal.is_reached]
    told = f"\nIt was promoted below {len(below)} of these goals.\n" if below else ""
    return f"## Goals, in points of a hundred\n\n{_rows(('goal', 'at least', 'found', 'reached'), rows)}{told}"


def _training(record: Mapping[str, Any]) -> str:
    rows = [
        (
            done["stage"],
            f"{done['tokens'] / 1e6:.2f}",
            f"{done['seconds'] / 60:.0f}",
            f"{done['scale']:g}",
            f"{done['made_by']['commit']}, {done['made_by']['device']}, {done['made_by']['threads']} threads",
        )
        for done in record["finished"]
    ]
    length = f"{record['tokens'] / 1e6:.1f} million tokens in {record['hours']:.1f} hours"
    return (
        "## Training\n\n"
        f"`twogear train all`, from fresh weights: {length}, seed {record['seed']}, recipe {record['digest']}.\n"
        "Scale is of the recipe's tokens. The record is in `training.json`.\n\n"
        f"{_rows(('stage', 'million tokens', 'minutes', 'scale', 'commit and machine'), rows)}"
    )
