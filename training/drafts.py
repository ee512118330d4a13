"""The draft of an answer that a thought begins with, so that it is worth something wherever a budget cuts it off."""

import random

_END = "?\n"
_CHANGED_SHARE = 0.5


def line(answer: str) -> str:
    """The draft as it stands in the thought."""
    return answer + _END


def wrong(draft: str, rng: random.Random) -> str:
    """About half of the draft's digits replaced, at least one; the same draft where it has none."""
    digits = [place for place, one in enumerate(draft) if one.isdigit()]
    if not digits:
        return draft
    letters = list(draft)
    for place in [place for place in digits if rng.random() < _CHANGED_SHARE] or [rng.choice(digits)]:
        letters[place] = rng.choice([digit for digit in "0123456789" if digit != letters[place]])
    return "".join(letters)
