"""Curves of reinforcement learning runs, methods beside each other and seeds as a band.

`python -m training.agapo.plot OUTPUT METHOD=METRICS[,METRICS…] …`: one metrics file for each seed of a method.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_MODES = ("reasoning", "standard")
Curve = dict[int, float]


def draw_runs(runs: Mapping[str, Sequence[Path]], output: Path) -> None:
    """Draws, for each method, the mean over its runs with their lowest and highest: pass rates, rewards, divergence."""
    records = {method: [_read(path) for path in paths] for method, paths in runs.items()}
    with mpl.rc_context({"svg.hashsalt": "twogear", "svg.fonttype": "none"}):  # the same data gives the same file
        figure = Figure(figsize=(16, 4.5), layout="constrained")
        axes = figure.subplots(1, 4)
        for panel, mode in zip(axes, _MODES, strict=False):
            _draw(panel, records, partial(_pass_rate, mode=mode))
            panel.set(title=f"held-out items right, {mode} mode", xlabel="step")
        _draw(axes[2], records, lambda record: record.get("reward"))
        axes[2].set(title="reward of drawn answers", xlabel="step")
        _draw(axes[3], records, lambda record: record.get("divergence"))
        axes[3].set(title="KL from the start, nats a sequence", xlabel="step")
        axes[0].legend()
        figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _pass_rate(record: dict[str, Any], mode: str) -> float | None:
    shares = [share for key, share in record.get("pass_rate", {}).items() if key.endswith(f"/{mode}")]
    return sum(shares) / len(shares) if shares else None


def _draw(
    axes: Axes, records: Mapping[str, Sequence[list[dict[str, Any]]]], value: Callable[[dict[str, Any]], float | None]
) -> None:
    for method, runs in records.items():
        curves = [{r["step"]: found for r in run if (found := value(r)) is not None} for run in runs]
        steps, low, mean, high = summary(curves)
        (line,) = axes.plot(steps, mean, label=method)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)


def summary(curves: Sequence[Curve]) -> tuple[list[int], list[float], list[float], list[float]]:
    """The steps that all curves have, with the lowest, mean and highest value at each."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    columns = [[curve[step] for curve in curves] for step in steps]
    return steps, [min(c) for c in columns], [sum(c) / len(c) for c in columns], [max(c) for c in columns]


if __name__ == "__main__":
    methods = (argument.partition("=") for argument in sys.argv[2:])
    draw_runs({name: list(map(Path, paths.split(","))) for name, _, paths in methods}, Path(sys.argv[1]))
