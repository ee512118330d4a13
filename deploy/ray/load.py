"""How many tokens are yet to come, by what a server says in /metrics, and how many replicas that takes."""

import math
import re
from collections import defaultdict
from typing import Any

from server.routing import FIRST_GUESS, NEWEST

STAT = "tokens_to_come"
"""The name under which a replica tells it to Ray."""
RUNNING_SHARE = 0.5
"""Of a request's tokens that are left, on average, while it runs."""
_SAMPLE = re.compile(
    r"^twogear_(requests_running|requests_waiting|requests_total|tokens_total)\{([^}]*)\} (\S+)$", re.MULTILINE
)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Expected:
    """Of one server. It learns how many tokens requests of each mode draw, from one reading to the next."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._drawn: dict[str, float] = {}

    def read(self, metrics: str) -> float:
        """The tokens that are yet to come, by the text of /metrics."""
        running, waiting, ended, drawn = _counts(metrics)
        for mode in ended:
            self._learn(mode, ended[mode], drawn[mode])
        return sum(
            (RUNNING_SHARE * running[mode] + waiting[mode]) * self._means.get(mode, FIRST_GUESS)
            for mode in running | waiting
        )

    def _learn(self, mode: str, ended: float, drawn: float) -> None:
        before, drawn_before = self._ended.get(mode, 0.0), self._drawn.get(mode, 0.0)
        self._ended[mode], self._drawn[mode] = ended, drawn
        if ended <= before or drawn < drawn_before:
            return
        newest = (drawn - drawn_before) / (ended - before)
        mean = self._means.get(mode, newest)
        self._means[mode] = mean + (1 - (1 - NEWEST) ** (ended - before)) * (newest - mean)


class TokensPerReplica:
    """Ray's policy of autoscaling: as many replicas as the tokens to come of all, divided by `tokens`."""

    def __init__(self, tokens: float) -> None:
        self._tokens = tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """`context`: Ray's AutoscalingContext. Ray itself keeps to the bounds and waits out its delays."""
        told = (context.aggregated_metrics or {}).get(STAT, {})
        return math.ceil(sum(told.values()) / self._tokens), {}


def _counts(metrics: str) -> tuple[dict[str, float], ...]:
    """By mode: requests that run, that wait and that have ended, and tokens that were drawn."""
    running, waiting, ended, drawn = (defaultdict[str, float](float) for _ in range(4))
    for name, labels, value in _SAMPLE.findall(metrics):
        label = dict(_LABEL.findall(labels))
        mode, number = label["mode"], float(value)
        if name == "requests_running":
            running[mode] += number
        elif name == "requests_waiting":
            waiting[mode] += number
        elif name == "requests_total" and label["outcome"] != "rejected":
            ended[mode] += number
        elif name == "tokens_total" and label["kind"] in ("reasoning", "answer"):
            drawn[mode] += number
    return running, waiting, ended, drawn
