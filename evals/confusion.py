"""Mode confusion: how often a mode behaves like one of the other kind, told from a trace and what came back for it.

Every sign is told from text and token counts alone, whatever the answer is worth; who is asked, and how, is
modes.py's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.families import Item

SIGNS = {"direct": ("tag", "trace", "long"), "thinking": ("empty", "short", "unclosed")}
"""By kind of mode. A direct mode that thinks: a think tag among its tokens, a line of the item's trace in the answer,
or an answer nearer to the trace's length than to the right answer's. A thinking mode that does not: an empty thought,
one nearer to the answer's length than to the trace's by their ratios (a trace with a step left out is none), or one
that the model did not close by itself.
"""
_TAGS = ("<think>", "</think>")


def direct_signs(item: Item, answer: str, generated: str) -> list[str]:
    """Which of a direct mode's signs an answer has; `generated` is all that was, with control tokens spelt out."""
    steps = set(item.trace.splitlines()) - set(item.answer.splitlines())
    found = {
        "tag": any(tag in generated for tag in _TAGS),
        "trace": not steps.isdisjoint(answer.splitlines()),
        "long": len(answer.strip()) > (len(item.answer) + len(item.trace)) / 2,
    }
    return [sign for sign in SIGNS["direct"] if found[sign]]


def thinking_signs(item: Item, thought: str, finish_reason: str | None) -> list[str]:
    """Which of a thinking mode's signs a thought has that ended for this reason (`reasoning_finish_reason`)."""
    length = len(thought.strip())
    found = {
        "empty": length == 0,
        "short": 0 < length < math.sqrt(len(item.answer) * len(item.trace)),
        "unclosed": finish_reason not in ("natural", "confident"),
    }
    return [sign for sign in SIGNS["thinking"] if found[sign]]


def shares(outcomes: Sequence[Mapping[str, Any]], mode: str, kind: str) -> dict[str, float]:
    """Of the outcomes in a mode of that kind, the share with any sign, and with each; `outcomes` as in a result.

    Raises KeyError for a result from before signs were told.
    """
    told = [outcome["confusion"] for outcome in outcomes if outcome["mode"] == mode]
    counts = {"any": sum(map(bool, told))} | {sign: sum(sign in one for one in told) for sign in SIGNS[kind]}
    return {name: round(count / len(told), 4) for name, count in counts.items()}
