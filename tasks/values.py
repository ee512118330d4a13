"""Values for tool calls and records, by pool: names, places, numbers, times, made-up words. Knows no wording."""

import random
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files

Value = str | int | float

_MADE_UP_SHARE = 0.15
_OFTEN_UNKNOWN = frozenset(("city", "name", "item", "song", "pet", "job"))
_CAPITALIZED = frozenset(("city", "name", "song"))
_CONSTANTS = frozenset(("sent", "started", "set", "playing", "on"))


@cache
def pools() -> dict[str, list[str]]:
    """The pools of `data/pools.toml`."""
    loaded: dict[str, list[str]] = tomllib.loads((files("tasks") / "data" / "pools.toml").read_text())
    return loaded


def made_up_word(rng: random.Random) -> str:
    """Syllables that spell no known word: what can only be copied."""
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))


def _expression(rng: random.Random) -> str:
    terms = [str(rng.randint(1, 10 ** rng.randint(1, 4))) for _ in range(rng.randint(2, 3))]
    text = terms[0]
    for term in terms[1:]:
        text += f" {rng.choice('+-*')} {term}"
    return text


def _amount(rng: random.Random) -> Value:
    return rng.randint(1, 999) if rng.random() < 0.5 else rng.randint(10, 9999) / 10


def _letters(rng: random.Random) -> str:
    return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(2, 4)))


_DRAWN: dict[str, Callable[[random.Random], Value]] = {
    "small": lambda rng: rng.randint(1, 99),
    "degrees": lambda rng: rng.randint(-15, 40),
    "number": lambda rng: rng.randint(-999, 9999),
    "amount": _amount,
    "expression": _expression,
    "time": lambda rng: f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}",
    "symbol": _letters,
    "order": lambda rng: rng.choice(("", "A", "B", "X", "ORD-")) + str(rng.randint(100, 99999)),
    "phone": lambda rng: f"{rng.randint(10, 999)}-{rng.randint(1000, 99999)}",
    "word": made_up_word,
}


def draw(pool: str, rng: random.Random) -> Value:
    """A value of a pool, now and then a made-up one. Raises KeyError for a pool that nobody knows."""
    if pool in _DRAWN:
        return _DRAWN[pool](rng)
    if pool in _CONSTANTS:
        return pool
    if pool in _OFTEN_UNKNOWN and rng.random() < _MADE_UP_SHARE:
        return made_up_word(rng).capitalize() if pool in _CAPITALIZED else made_up_word(rng)
    return rng.choice(pools()[pool])
