"""Needles in haystacks: long plain text with codes in it, and a question about them, for training and for measuring.

A code is bound to a name or a thing ("the code of the red box is 48213"); nobody can guess it. A binding belongs to the
held-out set or to the training set by a hash of it, whatever seed drew it and however it is worded. After RULER (Hsieh
et al. 2024): one needle, one among distractors, several, and following a value from holder to holder. Knows no
tokenizer: how long a text becomes is settled by `Sizing` with whatever counts its tokens.
"""

import hashlib
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

RETRIEVAL = ("single", "distractors", "several")
FAMILIES = (*RETRIEVAL, "variables")
HELD_OUT_SHARE = 8  # one binding in so many is never trained on
_DISTRACTORS = 4
_SEVERAL = 3
_CHAINS = 2
_CHAIN_LENGTH = 3

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jun", "Kim", "Leo",
    "Maria", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tom", "Yuna",
)  # fmt: skip
_ADJECTIVES = (
    "red", "blue", "green", "black", "white", "brown", "old", "new", "small", "big", "long", "round",
)  # fmt: skip
_NOUNS = (
    "box", "key", "door", "room", "house", "car", "book", "cup", "lamp", "bag", "boat", "tree",
    "garden", "table", "chair", "window", "road", "hill", "river", "bridge", "shop", "farm", "tower", "clock",
)  # fmt: skip
_FILLER = (
    "The {a} {n} is near the {m}.",
    "The {a} {n} stands behind the {m}.",
    "There is a {a} {n} in the {m}.",
    "The {n} is {a}, and the {m} is {b}.",
    "{p} likes the {a} {n}.",
    "{p} walks from the {n} to the {m}.",
    "In the morning {p} looks at the {n}.",
    "Nobody knows who made the {a} {n}.",
    "The {n} is as {a} as the {m}.",
    "Every day {p} and {q} meet at the {n}.",
)
# The code stands after who has it: told the other way round, its digits come by before it is known whose they are, and
# a model with two global layers finds two in three (docs/log.md).
_NEEDLES = (
    "The code of {key} is {value}.",
    "{Key} has the code {value}.",
    "Remember that the code of {key} is {value}.",
    "To {key} belongs the code {value}.",
    "As the code of {key}, use {value}.",
    "For {key}, the code is {value}.",
)
_HANDED_ON = (
    "{Key} has the same code as {source}.",
    "The code of {key} is the code of {source}.",
    "{Key} got the code of {source}.",
)
_QUESTIONS = (
    "What is the code of {keys}?",
    "Which code does {keys} have?",
    "Tell me the code of {keys}.",
    "Which code belongs to {keys}?",
)
_QUESTIONS_ON_SEVERAL = (
    "What are the codes of {keys}, in this order?",
    "Tell me the codes of {keys}, in this order.",
)
_QUESTIONS_ON_HOLDERS = (
    "Who has the code {value}?",
    "Name all who have the code {value}.",
)
_OPENINGS = (
    "Read the text and answer the question after it.",
    "Here is a text with codes in it. A question follows.",
    "Remember the codes in this text.",
)


_KEY = re.compile(rf"\b(?:{'|'.join(NAMES)}|the (?:{'|'.join(_ADJECTIVES)}) (?:{'|'.join(_NOUNS)}))\b", re.IGNORECASE)


def _filler_pattern() -> re.Pattern[str]:
    names, adjectives, nouns = (f"(?:{'|'.join(words)})" for words in (NAMES, _ADJECTIVES, _NOUNS))
    words = {"a": adjectives, "b": adjectives, "n": nouns, "m": nouns, "p": names, "q": names}
    sentences = "|".join(sentence.replace(".", r"\.").format(**words) for sentence in _FILLER)
    return re.compile(f" ?(?:{sentences})")


FILLER = _filler_pattern()
"""A sentence of filler with the space before it."""


class Binding(NamedTuple):
    """A code and who or what has it."""

    key: str
    value: str


@dataclass(frozen=True)
class Needle:
    """A question about codes in a text that has no length yet: `prompt` gives it one.

    `placed` are the sentences that matter, each with its place from 0 (the text's start) to 1 (just before the
    question); `depth` is the place of the first that is asked for. `holders`: the answer names them in any order.
    """

    family: str
    depth: float
    opening: str
    placed: tuple[tuple[float, str], ...]
    question: str
    expected: tuple[str, ...]
    filler_seed: int

    @property
    def answer(self) -> str:
        """The answer to learn."""
        return ", ".join(self.expected)

    @property
    def subjects(self) -> frozenset[str]:
        """Who or what the sentences that matter are about, and the codes in them; in lower case."""
        text = " ".join(sentence for _, sentence in self.placed)
        return frozenset(key.lower() for key in _KEY.findall(text)) | frozenset(re.findall(r"\d+", text))

    def prompt(self, sentences: int) -> str:
        """The user's message with so many sentences of filler around the needles."""
        text = haystack(self.placed, sentences, random.Random(self.filler_seed))
        return f"{self.opening}\n\n{text}\n\n{self.question}"

    def score(self, answer: str) -> float:
        """From 0 to 1: the share of codes right in their places, or of holders named right and no others."""
        if self.family == "variables":
            named = set(re.findall(r"[A-Za-z]+", answer)) & set(NAMES)
            wanted = set(self.expected)
            return len(named & wanted) / len(named | wanted)
        found: list[str] = re.findall(r"\d+", answer)
        right = sum(mine == theirs for mine, theirs in zip(found, self.expected, strict=False))
        return right / max(len(found), len(self.expected))


class Sizing:
    """Finds how many sentences of filler bring a prompt to `target` tokens and not one over.

    sizing = Sizing(8192)
    while (sentences := sizing.next) is not None:
        sizing.tell(count_tokens(needle.prompt(sentences)))
    prompt = needle.prompt(sizing.best)
    """

    _TRIES = 12
    _TOKENS_PER_SENTENCE = 8

    def __init__(self, target: int) -> None:
        self._target = target
        self._slack = max(target // 64, 24)
        self._left = self._TRIES
        self._too_many: float = math.inf
        self.best = -1
        self.next: int | None = target // self._TOKENS_PER_SENTENCE

    def tell(self, tokens: int) -> None:
        """`next` sentences make `tokens`. Raises ValueError where not even a text without filler fits."""
        size = self.next
        assert size is not None
        if tokens > self._target:
            if size == 0:
                raise ValueError(f"the needles and the question alone take {tokens} tokens, more than {self._target}")
            self._too_many = size
        else:
            self.best = size
        self._left -= 1
        is_close = 0 <= self._target - tokens <= self._slack
        self.next = None if is_close else self._guess(size, tokens)

    def _guess(self, size: int, tokens: int) -> int | None:
        """The size in proportion, aimed at the middle of what counts as close, strictly between what is known."""
        if self._left <= 0 or self._too_many - self.best <= 1:
            return 0 if self.best < 0 else None
        guess = int(max(size, 1) * (self._target - self._slack / 2) / tokens)
        return int(min(max(guess, self.best + 1), self._too_many - 1))


def is_held_out(binding: Binding) -> bool:
    """Whether a binding belongs to the held-out set."""
    return hashlib.sha256(f"{binding.key}={binding.value}".encode()).digest()[0] % HELD_OUT_SHARE == 0


def draw(family: str, depth: float, rng: random.Random, *, held_out: bool = False) -> Needle:
    """One question whose first needle lies at `depth`, 0 to 1; all its bindings are held out, or none."""
    make = {"single": _single, "distractors": _distractors, "several": _several, "variables": _variables}[family]
    return make(depth, rng, held_out)


def fit(needle: Needle, target: int, count_tokens: Callable[[str], int]) -> str:
    """The needle's prompt with as much filler as `target` tokens hold. Raises ValueError where none fits."""
    sizing = Sizing(target)
    while (sentences := sizing.next) is not None:
        sizing.tell(count_tokens(needle.prompt(sentences)))
    return needle.prompt(sizing.best)


class Question(NamedTuple):
    """One of several questions on the same text, with the sentence that answers it."""

    prompt: str
    sentence: str
    answer: str


def questions_on_one_text(rng: random.Random, *, keys: int, sentences: int) -> list[Question]:
    """A text with so many codes to train on (at most nine), each asked for once; the first prompt holds the text."""
    bindings = _bind(_keys(rng, keys), rng, held_out=False)
    placed = [(rng.random(), _state(binding, rng)) for binding in bindings]
    text = f"{rng.choice(_OPENINGS)}\n\n{haystack(placed, sentences, rng)}"
    asked = [
        Question(rng.choice(_QUESTIONS).format(keys=binding.key), sentence, binding.value)
        for binding, (_, sentence) in zip(bindings, placed, strict=True)
    ]
    rng.shuffle(asked)
    return [asked[0]._replace(prompt=f"{text}\n\n{asked[0].prompt}"), *asked[1:]]


def haystack(placed: Sequence[tuple[float, str]], sentences: int, rng: random.Random) -> str:
    """So many sentences of filler with those of `placed` between them."""
    text = [_filler(rng) for _ in range(sentences)]
    for earlier, (place, sentence) in enumerate(sorted(placed, key=lambda one: one[0])):
        text.insert(round(place * sentences) + earlier, sentence)
    return " ".join(text)


def _filler(rng: random.Random) -> str:
    n, m = rng.sample(_NOUNS, 2)
    p, q = rng.sample(NAMES, 2)
    return rng.choice(_FILLER).format(a=rng.choice(_ADJECTIVES), b=rng.choice(_ADJECTIVES), n=n, m=m, p=p, q=q)


def _keys(rng: random.Random, count: int) -> list[str]:
    """Different names, or different things of which some share a word."""
    if rng.random() < 0.5:
        return rng.sample(NAMES, count)
    adjectives, nouns = rng.sample(_ADJECTIVES, 3), rng.sample(_NOUNS, 3)
    pairs = [f"the {adjective} {noun}" for adjective in adjectives for noun in nouns]
    return rng.sample(pairs, count)


def _bind(keys: list[str], rng: random.Random, *, held_out: bool) -> list[Binding]:
    """A code of four to six digits for each key, no two alike."""
    bindings: list[Binding] = []
    for key in keys:
        while True:
            digits = rng.randint(4, 6)
            binding = Binding(key, str(rng.randrange(10 ** (digits - 1), 10**digits)))
            if is_held_out(binding) == held_out and all(binding.value != other.value for other in bindings):
                break
        bindings.append(binding)
    return bindings


def _state(binding: Binding, rng: random.Random) -> str:
    key = binding.key
    return rng.choice(_NEEDLES).format(key=key, Key=key[0].upper() + key[1:], value=binding.value)


def _listed(keys: list[str]) -> str:
    return f"{', '.join(keys[:-1])} and {keys[-1]}"


def _retrieval(
    family: str, depth: float, rng: random.Random, *, bindings: list[Binding], asked: int, questions: tuple[str, ...]
) -> Needle:
    """A question on the first `asked` of the bindings; the first lies at `depth`, the others anywhere."""
    places = [depth, *(rng.random() for _ in bindings[1:])]
    keys = [binding.key for binding in bindings[:asked]]
    return Needle(
        family=family,
        depth=depth,
        opening=rng.choice(_OPENINGS),
        placed=tuple((place, _state(binding, rng)) for place, binding in zip(places, bindings, strict=True)),
        question=rng.choice(questions).format(keys=keys[0] if asked == 1 else _listed(keys)),
        expected=tuple(binding.value for binding in bindings[:asked]),
        filler_seed=rng.getrandbits(32),
    )


def _single(depth: float, rng: random.Random, held_out: bool) -> Needle:
    bindings = _bind(_keys(rng, 1), rng, held_out=held_out)
    return _retrieval("single", depth, rng, bindings=bindings, asked=1, questions=_QUESTIONS)


def _distractors(depth: float, rng: random.Random, held_out: bool) -> Needle:
    bindings = _bind(_keys(rng, 1 + _DISTRACTORS), rng, held_out=held_out)
    return _retrieval("distractors", depth, rng, bindings=bindings, asked=1, questions=_QUESTIONS)


def _several(depth: float, rng: random.Random, held_out: bool) -> Needle:
    bindings = _bind(_keys(rng, _SEVERAL + 1), rng, held_out=held_out)
    return _retrieval("several", depth, rng, bindings=bindings, asked=_SEVERAL, questions=_QUESTIONS_ON_SEVERAL)


def _variables(depth: float, rng: random.Random, held_out: bool) -> Needle:
    """Chains of holders, each after the one it has its code from; asked are all holders of the first chain's code.

    Those to train on may be shorter: who has a code at all is learnt before who has it from whom.
    """
    length = _CHAIN_LENGTH if held_out else rng.randint(1, _CHAIN_LENGTH)
    holders = rng.sample(NAMES, _CHAINS * length)
    chains = [holders[start : start + length] for start in range(0, len(holders), length)]
    bindings = _bind([chain[0] for chain in chains], rng, held_out=held_out)
    placed: list[tuple[float, str]] = []
    for index, (chain, binding) in enumerate(zip(chains, bindings, strict=True)):
        start = rng.random() if index else depth
        places = [start, *sorted(rng.uniform(start, 1.0) for _ in chain[1:])]
        sentences = [_state(binding, rng)]
        for source, holder in pairwise(chain):
            sentences.append(rng.choice(_HANDED_ON).format(key=holder, Key=holder, source=source))
        placed += zip(places, sentences, strict=True)
    return Needle(
        family="variables",
        depth=depth,
        opening=rng.choice(_OPENINGS),
        placed=tuple(placed),
        question=rng.choice(_QUESTIONS_ON_HOLDERS).format(value=bindings[0].value),
        expected=tuple(chains[0]),
        filler_seed=rng.getrandbits(32),
    )
