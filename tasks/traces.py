"""The reasoning traces of the task families: how each is worked out, line by line, from reasoning-gym's metadata.

Every token of a trace is one small look-up, and the last line is the answer. Digits are arithmetic.py's part; which
families there are is families.py's.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from reasoning_gym.arithmetic.leg_counting import ANIMALS

from tasks.arithmetic import Operator, apply, divide_steps, operation_trace

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


def counted(animal: str, count: int) -> str:
    """As reasoning-gym writes it: `3 starfishs`."""
    return f"{count} {animal}{'s' if count > 1 else ''}"


def legs_trace(metadata: Mapping[str, Any]) -> str:
    """Each kind as it stands in the question with its legs, one after the other so that the next is found; the sum."""
    lines: list[str] = []
    legs: list[int] = []
    for animal, count in metadata["animals"].items():
        lines.append(f"{counted(animal, count)} {operation_trace(ANIMALS[animal], '*', count)}")
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


def bits_trace(metadata: Mapping[str, Any]) -> str:
    """Halves the number to nothing, the ones among the remainders counted on the way."""
    number, ones = int(metadata["number"]), 0
    lines: list[str] = []
    while number:
        ones += number % 2
        lines.append(f"{number}:{divide_steps(number, 2)}>{number // 2}r{number % 2}:{ones}")
        number //= 2
    return "\n".join([*lines, str(ones)])


def equation_trace(metadata: Mapping[str, Any]) -> str:
    """Moves the number over, settles the sign, divides: `5-8*e=-51`, `-8*e=-56`, `56/8=7`."""
    left, right = metadata["equation"].replace(" ", "").split("=")
    variable = metadata["variable"]
    terms = re.findall(r"[-+]?[^-+]+", left)
    (unknown,) = (term for term in terms if variable in term)
    known = sum(int(term) for term in terms if variable not in term)
    digits = unknown.removesuffix(variable).removesuffix("*")
    factor = int(digits) if digits.lstrip("+-") else int(f"{digits}1")
    lines = [operation_trace(int(right), "-", known)] if known else []
    product = int(right) - known
    lines.append(f"{unknown.lstrip('+')}={product}")
    if factor < 0:
        factor, product = -factor, -product
        lines.append(f"{factor}*{variable}={product}")
    if factor > 1:
        lines.append(f"{product}/{factor}:{divide_steps(product, factor)}")
    return "\n".join([*lines, str(product // factor)])


def letters_trace(metadata: Mapping[str, Any]) -> str:
    """Spells each word, every letter that is looked for with its number."""
    target, found = metadata["target_letter"], 0
    lines: list[str] = []
    for word in metadata["span"]:
        spelled: list[str] = []
        for letter in word:
            found += letter.lower() == target
            spelled.append(f"{letter}{found}" if letter.lower() == target else letter)
        lines.append(f"{word}: {' '.join(spelled)}")
    return "\n".join([*lines, str(found)])


def backward_trace(metadata: Mapping[str, Any]) -> str:
    """Numbers the letters, then goes through them from the last: `un:1u 2n`, `dog:3d 4o 5g`, `5g 4o 3d 2n 1u`.

    `pieces` are the word as a tokenizer cuts it, if that is known: each is copied before its letters are told.
    """
    word = metadata["word"]
    lines: list[str] = []
    numbered: list[str] = []
    for piece in metadata.get("pieces", [word]):
        own = [f"{place}{letter}" for place, letter in enumerate(piece, len(numbered) + 1)]
        lines.append(f"{piece}:{' '.join(own)}")
        numbered += own
    return "\n".join([*lines, " ".join(reversed(numbered)), word[::-1]])


def complex_trace(metadata: Mapping[str, Any]) -> str:
    """The real parts, then the imaginary ones, as reasoning-gym writes their sum."""
    operator: Operator = metadata["operation"]
    (a, b), (c, d) = metadata["num1"], metadata["num2"]
    lines = [operation_trace(int(a), operator, int(c)), operation_trace(int(b), operator, int(d))]
    real, imaginary = metadata["result"]
    return "\n".join([*lines, complex_text(real, imaginary)])


def complex_text(real: float, imaginary: float) -> str:
    """A complex number as reasoning-gym writes it: `-3.0 - 35.0i`, with two decimals where the other part is zero."""
    if imaginary == 0:
        return f"{real:.2f}"
    if real == 0:
        return f"{imaginary:.2f}i"
    return f"{real:.1f} {'-' if imaginary < 0 else '+'} {abs(imaginary):.1f}i"


def reversal_trace(metadata: Mapping[str, Any]) -> str:
    """Numbers the words, then goes through them from the last."""
    words = metadata["words"]
    numbered = [f"{place} {word}" for place, word in enumerate(words, 1)]
    return f"{', '.join(numbered)}\n{', '.join(reversed(numbered))}\n{', '.join(reversed(words))}"
