"""What a template may cost: computing time, and the size of what it makes. Checkpoints' templates are untrusted code.

The sandbox (`environment`) asks at each turn of a loop, at each call and before it makes what could be large.
"""

import re
import threading
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

from chat_templates.errors import FormatError

MOST_SECONDS = 2.0  # of computing; conversations of megabytes take a tenth
MOST_CHARACTERS = 1 << 25
MOST_BITS = 4096  # of whole numbers
WIDE = re.compile(r"%[^a-zA-Z%]{0,99}(?:\d{5}|\*)|\{[^{}]{0,99}:[^{}]{0,99}(?:\d{5}|\{)")
"""In a form: a width or a precision of five digits, or one that is an argument."""


class TooSlowError(FormatError):
    """The template took longer than it may."""


class _Deadline(threading.local):
    at = float("inf")  # on the clock of thread_time
    seconds = MOST_SECONDS


_deadline = _Deadline()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Gives every template that this thread renders in the block so many seconds instead of MOST_SECONDS."""
    before, _deadline.seconds = _deadline.seconds, seconds
    try:
        yield
    finally:
        _deadline.seconds = before


@contextmanager
def timed() -> Iterator[None]:
    """The time of one rendering begins."""
    _deadline.at = time.thread_time() + _deadline.seconds
    try:
        yield
    finally:
        _deadline.at = float("inf")


def check_time() -> None:
    """Raises TooSlowError."""
    if time.thread_time() > _deadline.at:
        raise TooSlowError(f"this model's chat template takes more than {_deadline.seconds:g} s for this", "messages")


def check_size(value: Any) -> Any:
    """`value`, unless it is or asks for something larger than a prompt can be: raises OverflowError."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise OverflowError("a number is too large")
    if isinstance(value, Sized) and len(value) > MOST_CHARACTERS:
        raise OverflowError("a value is too large")
    return value


def check_product(operator: str, left: Any, right: Any) -> None:
    """Raises OverflowError before `left * right` or `left ** right` would be too large."""
    if operator == "%":
        check_form(left if isinstance(left, str) else "")
        return
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
        if operator in ("*", "**") and bits > MOST_BITS:
            raise OverflowError("a number is too large")
        return
    for sized, number in ((left, right), (right, left)):
        is_repeated = operator == "*" and isinstance(sized, Sized) and isinstance(number, int)
        if is_repeated and len(sized) * number > MOST_CHARACTERS:
            raise OverflowError("a value is too large")


def check_form(form: str) -> None:
    """Raises OverflowError where a form, as of `format` or `%`, asks for a width that is large or an argument."""
    if WIDE.search(form):
        raise OverflowError("a width is too large")


def check_arguments(values: tuple[Any, ...]) -> None:
    """Raises OverflowError for a number that, as a width or a count, would make something too large."""
    if any(isinstance(value, int) and abs(value) > MOST_CHARACTERS for value in values):
        raise OverflowError("a number is too large")
