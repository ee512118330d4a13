"""The task families: reasoning-gym's items at a stated difficulty, and a reasoning trace for each item.

Questions, answers and scoring are reasoning-gym's; the traces are ours (traces.py). A problem is held out or trained on
by a hash of it, whatever seed drew it and however it is worded. Imports no torch.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import reasoning_gym

from tasks import traces

_CLOSE_SHARE = 0.3
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
    """A family at a difficulty: `config` goes to reasoning-gym; `easier` are the curriculum's steps towards it.

    `phrasings` are other wordings of the question around what `asked` makes of the metadata; `spelled` tells of a word
    in trace and answer that is written letter by letter.
    """

    name: str
    config: Mapping[str, Any]
    trace: Callable[[Mapping[str, Any]], str]
    easier: tuple[Mapping[str, Any], ...] = ()
    phrasings: tuple[str, ...] = ()
    asked: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda metadata: {"it": metadata["expression"]}
    spelled: Callable[[Mapping[str, Any]], str] = lambda _: ""

    def config_at(self, level: int | None) -> Mapping[str, Any]:
        """What goes to reasoning-gym at the curriculum's step `level`; None, or beyond the last: full difficulty."""
        return (*self.easier, self.config)[len(self.easier) if level is None else min(level, len(self.easier))]


def _identity(entry: Mapping[str, Any]) -> str:
    """What makes a problem the same however it is asked: its expression or its text."""
    metadata = entry["metadata"]
    if "expression" in metadata:
        return re.sub(r"\s+", "", metadata["expression"])
    return re.sub(r"\s+", "", entry["question"])


def is_held_out(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of reasoning-gym belongs to the held-out set."""
    return hashlib.sha256(_identity(entry).encode()).digest()[0] % HELD_OUT_SHARE == 0


_CALCULATIONS = (
    "What is {it}?",
    "{it}",
    "{it} =",
    "{it} = ?",
    "Compute {it}.",
    "What's {it}?",
    "How much is {it}?",
    "Please calculate {it}.",
    "Solve {it}.",
)
_DIGITS = {"min_digits": 1, "max_digits": 1, "operators": ["+", "-", "*"], "allow_negation": False}

_TENTHS = {"min_decimal_places": 1, "max_decimal_places": 1}
_LINEAR = {"operators_weights": [0.5, 0.5, 0.0]}
_SUMS_ONLY = {"operations_weights": [0.5, 0.5, 0.0, 0.0]}


def _complex_expression(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    """The operation between its numbers, each in parentheses."""
    one, other = (traces.complex_text(*metadata[name]) for name in ("num1", "num2"))
    return {"it": f"({one}) {metadata['operation']} ({other})"}


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "chain_sum",
            {"min_terms": 2, "max_terms": 3, "min_digits": 2, "max_digits": 3},
            traces.expression_trace,
            ({"max_terms": 2, "max_digits": 1}, {"max_terms": 2, "max_digits": 2}, {"max_terms": 3, "max_digits": 2}),
            _CALCULATIONS,
        ),
        Family(
            "decimal_chain_sum",
            {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2} | _TENTHS,
            traces.decimals_trace,
            ({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2} | _TENTHS,),
            _CALCULATIONS,
        ),
        Family(
            "basic_arithmetic",
            {"min_terms": 2, "max_terms": 3} | _DIGITS,
            traces.expression_trace,
            ({"max_terms": 2} | _DIGITS,),
            _CALCULATIONS,
        ),
        Family(
            "products",
            {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
            traces.expression_trace,
            ({"max_digits": 1}, {"max_digits": 2}),
            _CALCULATIONS,
        ),
        Family(
            "leg_counting",
            {"min_animals": 2, "max_animals": 4, "min_instances": 1, "max_instances": 9},
            traces.legs_trace,
            (
                {"min_animals": 1, "max_animals": 1, "max_instances": 9},
                {"min_animals": 1, "max_animals": 2, "max_instances": 9},
            ),
            ("How many legs do {it} have?", "How many legs do {it} have in total?", "Count the legs of {it}."),
            lambda metadata: {"it": " and ".join(traces.counted(*pair) for pair in metadata["animals"].items())},
        ),
        Family(
            "count_bits",
            {"min_n": 1, "max_n": 511},
            traces.bits_trace,
            ({"min_n": 1, "max_n": 15}, {"min_n": 1, "max_n": 99}),
            ("Count the 1 bits of {it}.", "How many ones does {it} have in binary?", "Number of 1 bits in {it}?"),
            lambda metadata: {"it": str(metadata["number"])},
        ),
        Family(
            "simple_equations",
            {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 12} | _LINEAR,
            traces.equation_trace,
            ({"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 5} | _LINEAR,),
            ("Solve {it}.", "{it}. What is {variable}?", "Find {variable}: {it}", "{it}, {variable} = ?"),
            lambda metadata: {"it": metadata["equation"], "variable": metadata["variable"]},
        ),
        Family(
            "letter_counting",
            {"min_words": 3, "max_words": 6},
            traces.letters_trace,
            ({"min_words": 1, "max_words": 1}, {"min_words": 1, "max_words": 3}),
            ("How many {letter} are in {it}?", "Count the letter {letter} in {it}.", "How often is {letter} in {it}?"),
            lambda metadata: {"it": f'"{" ".join(metadata["span"])}"', "letter": f'"{metadata["target_letter"]}"'},
        ),
        Family(
            "spell_backward",
            {"min_word_len": 3, "max_word_len": 7},
            traces.backward_trace,
            ({"min_word_len": 3, "max_word_len": 4},),
            ("Spell {it} backward.", "Write {it} backwards.", "{it} backwards?", "Reverse the letters of {it}."),
            lambda metadata: {"it": metadata["word"]},
            lambda metadata: metadata["word"][::-1],
        ),
        Family(
            "complex_arithmetic",
            {"min_real": -50, "max_real": 50, "min_imag": -50, "max_imag": 50} | _SUMS_ONLY,
            traces.complex_trace,
            ({"min_real": -9, "max_real": 9, "min_imag": -9, "max_imag": 9} | _SUMS_ONLY,),
            ("What is {it}?", "Compute {it}.", "{it} = ?"),
            _complex_expression,
        ),
        Family(
            "word_sequence_reversal",
            {"min_words": 3, "max_words": 6},
            traces.reversal_trace,
            ({"min_words": 3, "max_words": 3},),
            ("Reverse this list: {it}", "The words {it} from the last to the first?", "Write these backwards: {it}"),
            lambda metadata: {"it": ", ".join(metadata["words"])},
        ),
    )
}

EMBEDDED = tuple(name for name in FAMILIES if name != "letter_counting")
"""Those that the embedded checkpoint learns: letter counting needs the spelling of tokens that it hardly ever sees."""


def _phrase(family: Family, item: Mapping[str, Any], rng: random.Random) -> str:
    """The question in other words, with the same answer."""
    asked = dict(family.asked(item["metadata"]))
    if "expression" in item["metadata"] and rng.random() < _CLOSE_SHARE:
        asked["it"] = asked["it"].replace(" ", "")
    return rng.choice(family.phrasings).format_map(asked)


@cache
def _dataset(name: str, level: int | None) -> Any:
    return reasoning_gym.create_dataset(name, size=2**31 - 1, seed=0, **FAMILIES[name].config_at(level))


def draw(name: str, rng: random.Random, *, level: int | None = None, held_out: bool = False) -> Item:
    """One held-out or training item of a family; `level` is the curriculum's step (None: the last, full difficulty)."""
    family = FAMILIES[name]
    dataset = _dataset(name, level)
    while True:
        entry = dataset[rng.randrange(2**31 - 2)]
        if is_held_out(entry) == held_out:
            return Item(name, entry["question"], entry["answer"], family.trace(entry["metadata"]), entry)


def rephrase(item: Item, rng: random.Random) -> Item:
    """The same item asked in other words."""
    return item._replace(question=_phrase(FAMILIES[item.family], item.entry, rng))


def held_out_items(names: Sequence[str], count: int, seed: int, *, level: int | None = None) -> Iterator[Item]:
    """`count` items, the families in turn, no question twice within a family while it has others; `level` as `draw`."""
    seen: set[str] = set()
    rng = random.Random(seed)
    for index in range(count):
        name = names[index % len(names)]
        for _ in range(100):
            item = draw(name, rng, level=level, held_out=True)
            if item.question not in seen:
                break
        seen.add(item.question)
        yield item


def score(item: Item, answer: str) -> float:
    """reasoning-gym's own score of an answer, from 0 to 1."""
    return float(_dataset(item.family, None).score_answer(answer.strip(), item.entry))
