"""Digit-by-digit arithmetic written out as text, so that every generated token is one small look-up.

`345 + 278` becomes `345+278:5+8+0=13,4+7+1=12,3+2+1=06>623`: digit pairs from the right with the incoming carry, each
result as carry and digit, then the number read off. Knows nothing of tasks, prompts or tokens.
"""

from typing import Literal

Operator = Literal["+", "-", "*"]


def _digits(number: int, width: int) -> list[int]:
    """The decimal digits of `number`, least significant first, padded with zeros to `width`."""
    return [int(digit) for digit in reversed(str(number).zfill(width))]


def add_steps(a: int, b: int) -> str:
    """The columns of a + b for a, b >= 0: `digit+digit+carry=carry digit`."""
    width = max(len(str(a)), len(str(b)))
    carry, steps = 0, []
    for x, y in zip(_digits(a, width), _digits(b, width), strict=True):
        total = x + y + carry
        steps.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return ",".join(steps)


def subtract_steps(a: int, b: int) -> str:
    """The columns of a - b for a >= b >= 0: `digit-digit-borrow=borrow digit`."""
    width = len(str(a))
    borrow, steps = 0, []
    for x, y in zip(_digits(a, width), _digits(b, width), strict=True):
        difference = x - y - borrow
        borrow_out = int(difference < 0)
        steps.append(f"{x}-{y}-{borrow}={borrow_out}{difference % 10}")
        borrow = borrow_out
    return ",".join(steps)


def scale_steps(a: int, digit: int) -> str:
    """The columns of a * digit for a >= 0 and 0 <= digit <= 9: `digit*digit+carry=carry digit`."""
    carry, steps = 0, []
    for x in _digits(a, 1):
        total = x * digit + carry
        steps.append(f"{x}*{digit}+{carry}={total:02d}")
        carry = total // 10
    return ",".join(steps)


def divide_steps(a: int, b: int) -> str:
    """The digits of a / b for a >= 0 and b > 0, from the left: `carried digit/b=quotient r remainder`."""
    remainder, steps = 0, []
    for digit in str(a):
        carried = remainder * 10 + int(digit)
        remainder = carried % b
        steps.append(f"{carried}/{b}={carried // b}r{remainder}")
    return ",".join(steps)


def _magnitude_lines(a: int, operator: Operator, b: int) -> list[str]:
    """The steps of one operation on natural numbers (a >= b for "-"); the last line ends with `>result`."""
    if operator == "+":
        return [f"{add_steps(a, b)}>{a + b}"]
    if operator == "-":
        return [f"{subtract_steps(a, b)}>{a - b}"]
    if b <= 9:
        return [f"{scale_steps(a, b)}>{a * b}"]
    return _long_multiplication(a, b)


def _long_multiplication(a: int, b: int) -> list[str]:
    """Partial products from the lowest digit of `b`, each added to the total as soon as it is known."""
    lines: list[str] = []
    total = 0
    for position, digit in enumerate(_digits(b, 1)):
        partial = a * digit
        lines.append(f"{a}*{digit}:{scale_steps(a, digit)}>{partial}")
        if position == 0:
            total = partial
            continue
        shifted = partial * 10**position
        lines.append(f"{shifted}+{total}:{add_steps(shifted, total)}>{shifted + total}")
        total += shifted
    return lines


def normalize(a: int, operator: Operator, b: int) -> tuple[int, int, Operator, int]:
    """`a operator b` as (sign, x, operator, y) over natural numbers, with x >= y for "-"."""
    if operator == "*":
        sign = -1 if (a < 0) != (b < 0) else 1
        return sign, abs(a), "*", abs(b)
    if operator == "-":
        b = -b
    if (a < 0) == (b < 0):
        return (-1 if a < 0 else 1), abs(a), "+", abs(b)
    larger, smaller = (a, b) if abs(a) >= abs(b) else (b, a)
    return (-1 if larger < 0 else 1), abs(larger), "-", abs(smaller)


def apply(a: int, operator: Operator, b: int) -> int:
    """The plain result, for checking traces against."""
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def operation_trace(a: int, operator: Operator, b: int) -> str:
    """The written-out `a operator b`, signs settled first, as `23-60:-(60-23)`; it ends with `>result`."""
    sign, x, natural_operator, y = normalize(a, operator, b)
    result = apply(a, operator, b)
    head = f"{a}{operator}{b}:"
    if sign < 0 or (a, operator, b) != (x, natural_operator, y):
        head += f"{'-' if sign < 0 else ''}({x}{natural_operator}{y}):"
    lines = _magnitude_lines(x, natural_operator, y)
    if len(lines) > 1:
        lines = [head, *lines]
        head = ""
    trace = head + "\n".join(lines)
    return trace if sign > 0 else f"{trace}>{result}"
