"""Draws a run's curve from its metrics file: loss per mode, and whole answers right per family and mode."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_MODES = ("standard", "reasoning")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _draw_loss(axes: Axes, records: list[dict[str, Any]]) -> None:
    for mode in _MODES:
        points = [(r["tokens"] / 1e6, r["loss"][mode]) for r in records if mode in r["loss"]]
        axes.plot(*zip(*points, strict=True), label=mode)
    axes.set(title="loss", xlabel="million tokens", yscale="log")
    axes.legend()


def _draw_answers(axes: Axes, records: list[dict[str, Any]], mode: str) -> None:
    keys = sorted({key for record in records for key in record["whole_answers"]})  # a run's families may change
    for key in keys:
        family, _, key_mode = key.partition("/")
        if key_mode == mode:
            points = [(r["tokens"] / 1e6, r["whole_answers"][key]) for r in records if key in r["whole_answers"]]
            axes.plot(*zip(*points, strict=True), label=family)
    axes.set(title=f"held-out items, every token right: {mode}", xlabel="million tokens", ylim=(-0.02, 1.02))
    axes.legend(fontsize="small")


def draw_curve(metrics: Path, output: Path) -> None:
    """Writes the curve of the checks in `metrics` as an SVG."""
    records = [record for record in read_metrics(metrics) if "whole_answers" in record]
    with mpl.rc_context({"svg.hashsalt": "twogear", "svg.fonttype": "none"}):  # the same data gives the same file
        figure = Figure(figsize=(15, 4.5), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _draw_loss(left, records)
        _draw_answers(middle, records, "standard")
        _draw_answers(right, records, "reasoning")
        figure.savefig(output, metadata={"Date": None})
