"""The numbers that flags take. Each reader raises ArgumentTypeError, which says what would be right."""

import argparse
import math

MOST_DIGITS = 16


def count(text: str) -> int:
    """A whole number from 0 on."""
    return _whole(text, 0)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    return _whole(text, 1)


def above_0(text: str) -> float:
    """Any finite number above 0."""
    number = _finite(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def seconds(text: str) -> float:
    """A time above 0."""
    time = _finite(text)
    if not time > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: a number of seconds above 0 is")
    return time


def port(text: str) -> int:
    """0 stands for any free port."""
    number = int(text) if text.isdecimal() and len(text) < MOST_DIGITS else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535 is")
    return number


def _whole(text: str, least: int) -> int:
    number = int(text) if text.isdecimal() and len(text) < MOST_DIGITS else -1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return number


def _finite(text: str) -> float:
    """NaN for what is none."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
