"""Copying and spelling drills: what every trace is made of, asked for alone.

A small model learns to find the next word of a text slowly from traces, where few tokens depend on it; an answer that
is nothing but a copy teaches it at every token.
"""

import random
from typing import NamedTuple

_REPEAT = ("Repeat: {0}", "Repeat after me: {0}", "Say {0}", 'Repeat "{0}"', "Copy this: {0}")
_SPELL = ("Spell: {0}", 'Spell "{0}"', "How do you spell {0}?", "Spell {0}")


class Drill(NamedTuple):
    """A prompt, the thought of the reasoning mode, and the answer."""

    prompt: str
    thought: str
    answer: str


def spelled(word: str) -> str:
    """A word and then its letters: ` Paris p a r i s`."""
    return f" {word}" + "".join(f" {letter}" for letter in word.lower())


def _word(rng: random.Random, words: tuple[str, ...]) -> str:
    kind = rng.random()
    if kind < 0.2:
        return str(rng.randint(0, 9999))
    word = rng.choice(words)
    return word.capitalize() if kind < 0.3 else word


def draw(rng: random.Random, words: tuple[str, ...]) -> Drill:
    """A few words to repeat, or to spell one after the other."""
    chosen = [_word(rng, words) for _ in range(rng.randint(1, 10))]
    if rng.random() < 0.6:
        text = " ".join(chosen)
        return Drill(rng.choice(_REPEAT).format(text), "I repeat it word by word.", text)
    chosen = chosen[:4]
    answer = ",".join(spelled(word) for word in chosen).strip()
    return Drill(rng.choice(_SPELL).format(" ".join(chosen)), "I spell it letter by letter.", answer)
