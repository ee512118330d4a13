"""The task families: reasoning-gym's items at a stated difficulty, and a reasoning trace for each item.

Questions, answers and scoring are reasoning-gym's; the traces are ours. A problem belongs to the held-out set or to the
training set by a hash of it, whatever seed drew it and however it is worded. Imports no torch.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

import reasoning_gym
from reasoning_gym.arithmetic.leg_counting import ANIMALS

from training.arithmetic import Operator, apply, operation_trace

HELD_OUT_SHARE = 8  # one question in so many is never trained on


class Item(NamedTuple):
    """One question with its answer and the reasoning that leads there; `entry` is reasoning-gym's own record."""

    family: str
    question: str
    answer: str
    trace: str
    entry: dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A family at a difficulty: `config` goes to reasoning-gym; `easier` are the curriculum's steps towards it."""

    name: str
    config: Mapping[str, Any]
    trace: Callable[[Mapping[str, Any]], str]
    easier: tuple[Mapping[str, Any], ...] = ()
    phrasings: tuple[str, ...] = ()


def _identity(entry: Mapping[str, Any]) -> str:
    """What makes a problem the same however it is asked: its expression or its text."""
    metadata = entry["metadata"]
    if "expression" in metadata:
        return re.sub(r"\s+", "", metadata["expression"])
    return re.sub(r"\s+", "", entry["question"])


def is_held_out(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of reasoning-gym belongs to the held-out set."""
    return hashlib.sha256(_identity(entry).encode()).digest()[0] % HELD_OUT_SHARE == 0


_TOKEN = re.compile(r"\d+|[-+*()]")


def _parse(expression: str) -> list[str | int]:
    """Tokens of an expression, a minus that belongs to a number folded into it."""
    tokens: list[str | int] = []
    for text in _TOKEN.findall(expression):
        unary = tokens and tokens[-1] == "-" and (len(tokens) == 1 or tokens[-2] in ("+", "-", "*", "("))
        if text.isdigit() and unary:
            tokens[-1] = -int(text)
        else:
            tokens.append(int(text) if text.isdigit() else text)
    return tokens


def _next_operation(tokens: Sequence[str | int]) -> int:
    """The position of the operator to apply next: inside the last-opened parentheses, products first, from the left."""
    start, end = 0, len(tokens)
    for position, symbol in enumerate(tokens):
        if symbol == "(":
            start = position + 1
        elif symbol == ")":
            end = position
            break
    operators = [i for i in range(start + 1, end) if tokens[i] in ("+", "-", "*") and isinstance(tokens[i - 1], int)]
    products = [i for i in operators if tokens[i] == "*"]
    return (products or operators or [-1])[0]


def _pairs(tokens: Sequence[str | int]) -> Iterator[tuple[int, int]]:
    """The positions of matching parentheses, inner pairs first."""
    opened: list[int] = []
    for position, symbol in enumerate(tokens):
        if symbol == "(":
            opened.append(position)
        elif symbol == ")":
            yield opened.pop(), position


def _drop_parentheses(tokens: list[str | int]) -> list[str | int]:
    """Removes parentheses that say nothing: around a single number, around everything, around other parentheses."""
    pairs = set(_pairs(tokens))
    for start, end in pairs:
        around_number = end - start == 2
        around_everything = start == 0 and end == len(tokens) - 1
        if around_number or around_everything or (start + 1, end - 1) in pairs:
            return _drop_parentheses([*tokens[:start], *tokens[start + 1 : end], *tokens[end + 1 :]])
    return tokens


def expression_trace(metadata: Mapping[str, Any]) -> str:
    """Reduces `metadata["expression"]` operation by operation, the expression written out before each but the last."""
    tokens = _drop_parentheses(_parse(metadata["expression"]))
    lines: list[str] = ["".join(map(str, tokens))] if len(tokens) > 3 else []
    while len(tokens) > 1:
        i = _next_operation(tokens)
        a, operator, b = tokens[i - 1], tokens[i], tokens[i + 1]
        assert isinstance(a, int)
        assert isinstance(b, int)
        typed = cast("Operator", operator)
        lines.append(operation_trace(a, typed, b))
        tokens = _drop_parentheses([*tokens[: i - 1], apply(a, typed, b), *tokens[i + 2 :]])
        if len(tokens) > 3:
            lines.append("".join(map(str, tokens)))
    return "\n".join(lines) or str(tokens[0])


def _counted(animal: str, count: int) -> str:
    """As reasoning-gym writes it: `3 starfishs`."""
    return f"{count} {animal}{'s' if count > 1 else ''}"


def legs_trace(metadata: Mapping[str, Any]) -> str:
    """Each kind as it stands in the question with its legs, one after the other so that the next is found; the sum."""
    lines: list[str] = []
    legs: list[int] = []
    for animal, count in metadata["animals"].items():
        lines.append(f"{_counted(animal, count)} {operation_trace(ANIMALS[animal], '*', count)}")
        legs.append(ANIMALS[animal] * count)
    total = legs[0]
    for more in legs[1:]:
        lines.append(operation_trace(total, "+", more))
        total += more
    return "\n".join(lines)


def decimals_trace(metadata: Mapping[str, Any]) -> str:
    """The sum in tenths, without points, and the result with its point again."""
    trace = expression_trace({"expression": metadata["expression"].replace(".", "")})
    tenths = int(re.split(r"[>\n]", trace)[-1])
    return f"{trace}\n{'-' if tenths < 0 else ''}{abs(tenths) // 10}.{abs(tenths) % 10}"


_CALCULATIONS = (
    "What is {0}?",
    "{0}",
    "{0} =",
    "{0} = ?",
    "Compute {0}.",
    "What's {0}?",
    "How much is {0}?",
    "Please calculate {0}.",
    "Solve {0}.",
)
_DIGITS = {"min_digits": 1, "max_digits": 1, "operators": ["+", "-", "*"], "allow_negation": False}

_TENTHS = {"min_decimal_places": 1, "max_decimal_places": 1}
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "chain_sum",
            {"min_terms": 2, "max_terms": 3, "min_digits": 2, "max_digits": 3},
            expression_trace,
            ({"max_terms": 2, "max_digits": 1}, {"max_terms": 2, "max_digits": 2}, {"max_terms": 3, "max_digits": 2}),
            _CALCULATIONS,
        ),
        Family(
            "decimal_chain_sum",
            {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2} | _TENTHS,
            decimals_trace,
            ({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2} | _TENTHS,),
            _CALCULATIONS,
        ),
        Family(
            "basic_arithmetic",
            {"min_terms": 2, "max_terms": 3} | _DIGITS,
            expression_trace,
            ({"max_terms": 2} | _DIGITS,),
            _CALCULATIONS,
        ),
        Family(
            "products",
            {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
            expression_trace,
            ({"max_digits": 1}, {"max_digits": 2}),
            _CALCULATIONS,
        ),
        Family(
            "leg_counting",
            {"min_animals": 2, "max_animals": 4, "min_instances": 1, "max_instances": 9},
            legs_trace,
            (
                {"min_animals": 1, "max_animals": 1, "max_instances": 9},
                {"min_animals": 1, "max_animals": 2, "max_instances": 9},
            ),
            ("How many legs do {0} have?", "How many legs do {0} have in total?", "Count the legs of {0}."),
        ),
    )
}


def _phrase(family: Family, item: Mapping[str, Any], rng: random.Random) -> str:
    """The question in other words, with the same answer."""
    metadata = item["metadata"]
    text = rng.choice(family.phrasings)
    if family.name == "leg_counting":
        return text.format(" and ".join(_counted(*pair) for pair in metadata["animals"].items()))
    expression = metadata["expression"]
    if rng.random() < 0.3:
        expression = expression.replace(" ", "")
    return text.format(expression)


@cache
def _dataset(name: str, level: int) -> Any:
    family = FAMILIES[name]
    config = (*family.easier, family.config)[level]
    return reasoning_gym.create_dataset(name, size=2**31 - 1, seed=0, **config)


def draw(name: str, rng: random.Random, *, level: int | None = None, held_out: bool = False) -> Item:
    """One held-out or training item of a family; `level` is the curriculum's step (None: the last, full difficulty)."""
    family = FAMILIES[name]
    dataset = _dataset(name, len(family.easier) if level is None else min(level, len(family.easier)))
    while True:
        entry = dataset[rng.randrange(2**31 - 2)]
        if is_held_out(entry) == held_out:
            return Item(name, entry["question"], entry["answer"], family.trace(entry["metadata"]), entry)


def rephrase(item: Item, rng: random.Random) -> Item:
    """The same item asked in other words."""
    return item._replace(question=_phrase(FAMILIES[item.family], item.entry, rng))


def held_out_items(names: Sequence[str], count: int, seed: int) -> Iterator[Item]:
    """`count` items, the families in turn, no question twice within a family while it has others."""
    seen: set[str] = set()
    rng = random.Random(seed)
    for index in range(count):
        name = names[index % len(names)]
        for _ in range(100):
            item = draw(name, rng, held_out=True)
            if item.question not in seen:
                break
        seen.add(item.question)
        yield item


def score(item: Item, answer: str) -> float:
    """reasoning-gym's own score of an answer, from 0 to 1."""
    return float(_dataset(item.family, len(FAMILIES[item.family].easier)).score_answer(answer.strip(), item.entry))
