"""A result as the text of its file: JSON with one sample a line, small enough for the repository."""

import json
from typing import Any

_WIDTH = 600  # characters; what fits into them stays on one line
_DIGITS = 6  # significant ones; no clock here is good for more


def result_text(result: dict[str, Any]) -> str:
    """The file's text. Floats are rounded to six significant digits; tuples become lists, as JSON has them."""
    return _spread(_rounded(result), depth=0) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value


def _spread(value: Any, depth: int) -> str:
    """The top level and whatever is longer than a line, an entry a line; all else on one."""
    flat = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, dict | list) or (depth > 0 and len(flat) <= _WIDTH):
        return flat
    if isinstance(value, dict):
        entries = [f"{json.dumps(key, ensure_ascii=False)}: {_spread(one, depth + 1)}" for key, one in value.items()]
    else:
        entries = [_spread(one, depth + 1) for one in value]
    pad = "\n" + " " * (depth + 1)
    first, last = ("{", "}") if isinstance(value, dict) else ("[", "]")
    return f"{first}{pad}{f',{pad}'.join(entries)}\n{' ' * depth}{last}"
