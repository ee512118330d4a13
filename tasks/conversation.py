"""Short conversation for training: intents from a data file, with the small variations people type."""

import random
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jun", "Kim", "Leo", "Maria",
          "Noah", "Olga", "Paul", "Rosa", "Sam", "Tom", "Yuna")  # fmt: skip


class Exchange(NamedTuple):
    """A user's line, what the model thinks about it, and the reply."""

    prompt: str
    thought: str
    reply: str


@cache
def intents() -> list[dict[str, Any]]:
    """The intents of `data/conversation.toml`."""
    text = (files("tasks") / "data" / "conversation.toml").read_text()
    loaded: list[dict[str, Any]] = tomllib.loads(text)["intent"]
    return loaded


def _random_word(rng: random.Random) -> str:
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))


def _vary(prompt: str, rng: random.Random) -> str:
    """Case and punctuation as people type them."""
    if rng.random() < 0.3:
        prompt = prompt.lower()
    if rng.random() < 0.2:
        prompt = prompt.rstrip("?!.")
    if rng.random() < 0.15 and prompt[-1].isalpha():
        prompt += rng.choice("!.?")
    return prompt


def draw(rng: random.Random, things: tuple[str, ...]) -> Exchange:
    """One exchange; `things` are words that unknown questions may be about."""
    intent = rng.choice(intents())
    prompt = rng.choice(intent["prompts"])
    while "{thing}" in prompt:
        thing = _random_word(rng) if rng.random() < 0.3 else rng.choice(things)
        prompt = prompt.replace("{thing}", thing, 1)
    prompt = prompt.replace("{name}", rng.choice(_NAMES))
    return Exchange(_vary(prompt, rng), intent["thought"], rng.choice(intent["replies"]))
