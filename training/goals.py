"""What the embedded checkpoint has to reach, told from the evaluations' results."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import msgspec


class Goal(msgspec.Struct, frozen=True):
    """What a checkpoint has to reach, and what it has: `found` at least `least`, both in points of a hundred."""

    name: str
    least: float
    found: float

    @property
    def is_reached(self) -> bool:
        """Whether."""
        return self.found >= self.least


def goals(results: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """The goals of the embedded checkpoint that these results can tell."""
    summary = {name: result["summary"] for name, result in results.items()}
    accuracy, budget = summary["modes"], list(summary["budgets"].values())
    found = [
        ("reasoning mode right", 95.0, accuracy["reasoning"]),
        ("standard mode lower than reasoning mode by", 35.0, accuracy["reasoning"] - accuracy["standard"]),
        ("tools and JSON, the worse mode", 97.0, min(summary["tools"].values())),
        ("codes up to 32K, the worst cell", 100.0, summary["needles"]["worst"]),
        ("largest step down of the budget curve", -1.0, min(after - before for before, after in pairwise(budget))),
    ]
    if "needles_128k" in summary:
        found.append(("codes at 128K, on average", 95.0, summary["needles_128k"]["mean"]))
    return [Goal(name, least, round(value * 100, 1)) for name, least, value in found]
