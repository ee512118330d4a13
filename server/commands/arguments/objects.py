"""The JSON that flags take."""

import argparse
import json
from typing import Any


def json_object(text: str) -> dict[str, Any]:
    """A JSON object; raises ArgumentTypeError for what is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text[:40]!r} is no JSON object, as {{"enable_thinking": false}} is')
    return value
