"""Drills of copying: words to repeat, to list as JSON, to put under keys. They know no task.

What a small model needs for tool calls and JSON is to find words in the request and write them elsewhere. Among tasks
that seldom ask for it, it learns that late; a share of drills brings it early (docs/log.md).
"""

import json
import random
from typing import NamedTuple

from tasks import values

_REPEATS = ("Repeat: {}", "Repeat this: {}", "Say: {}", "Copy this: {}", "Write: {}", "Echo {}")
_LISTS = ("As a JSON list: {}", "Write a JSON list of {}", "JSON list: {}", "{}\nMake that a JSON list.")
_OBJECTS = ("As a JSON object: {}", "Write JSON: {}", "JSON with {}", "{}\nMake that a JSON object.")
_POOLS = (
    "city",
    "country",
    "name",
    "item",
    "song",
    "color",
    "day",
    "errand",
    "order",
    "phone",
    "symbol",
    "time",
    "number",
)


class Drill(NamedTuple):
    """A request and the answer, which holds nothing but words of the request."""

    request: str
    answer: str


def _word(rng: random.Random, known: tuple[str, ...]) -> values.Value:
    match rng.randrange(3):
        case 0:
            return values.made_up_word(rng) if rng.random() < 0.5 else values.made_up_word(rng).capitalize()
        case 1:
            return rng.choice(known)
        case _:
            return values.draw(rng.choice(_POOLS), rng)


def draw(rng: random.Random, known: tuple[str, ...]) -> Drill:
    """One drill over made-up words, values and `known` words."""
    words = [_word(rng, known) for _ in range(rng.randint(2, 8))]
    match rng.randrange(3):
        case 0:
            text = " ".join(map(str, words))
            return Drill(rng.choice(_REPEATS).format(text), text)
        case 1:
            text = ", ".join(map(str, words))
            return Drill(rng.choice(_LISTS).format(text), json.dumps(words))
        case _:
            pairs = {str(_word(rng, known)).lower().replace(" ", "_"): word for word in words[:4]}
            joint = rng.choice((" ", ": ", " = ", " is "))
            text = ", ".join(f"{key}{joint}{value}" for key, value in pairs.items())
            return Drill(rng.choice(_OBJECTS).format(text), json.dumps(pairs))
