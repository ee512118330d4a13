"""Draws a result: `python -m evals.plots RESULT OUTPUT`.

There are plots of `twogear calibrate`, of `twogear eval auto`, `budgets` and `needles`, and of the study of mixes
(training/mixes.py). Those in the docs are made with it; the format is the output's suffix (.svg, .png).
"""

import json
import sys
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw(result: dict[str, Any], output: Path) -> None:
    """Writes the plot of a result. Raises ValueError for one that has none."""
    draws = {
        "calibrate": _draw_calibrate,
        "eval auto": _draw_auto,
        "eval budgets": _draw_budgets,
        "eval needles": _draw_needles,
        "mixes": _draw_mixes,
    }
    if result.get("what") not in draws:
        raise ValueError(f"no plot of {result.get('what')!r}; there are plots of {', '.join(draws)}")
    with mpl.rc_context({"svg.hashsalt": "twogear", "svg.fonttype": "none"}):  # the same data gives the same file
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        draws[result["what"]](figure, result)
        figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


def _draw_auto(figure: Figure, result: dict[str, Any]) -> None:
    axes = figure.subplots()
    for name, points in result["curves"].items():
        line = [(point["tokens"], point["accuracy"]) for point in points]
        axes.plot(*zip(*line, strict=True), linewidth=2 if name == "fitted" else 1, label=f"by {name}")
    modes = [(result["tokens"][name], result["summary"][name]) for name in result["summary"]]
    axes.plot(*zip(*modes, strict=True), color="grey", linestyle="--", marker="o", label="both modes, mixed at random")
    best = result["oracle"]
    axes.plot(best["tokens"], best["accuracy"], color="black", marker="*", linestyle="", label="oracle")
    axes.axhline(0.99 * modes[-1][1], color="grey", linestyle=":", label="99 % of the thinking mode's accuracy")
    axes.set(title="choosing by the draft's confidence", xlabel="tokens per question", ylabel="right")
    axes.legend(fontsize="small", loc="lower right")


def _draw_calibrate(figure: Figure, result: dict[str, Any]) -> None:
    axes = figure.subplots()
    points = [(point["tokens"], point["accuracy"]) for point in result["curve"]]
    axes.plot(*zip(*points, strict=True), label="all thresholds, on all questions")
    direct, thinking, chosen = ((one["tokens"], one["accuracy"]) for one in result["held_out"].values())
    mixed = zip(direct, thinking, strict=True)
    axes.plot(*mixed, color="grey", linestyle="--", marker="o", label="both modes, held out, mixed at random")
    axes.plot(*chosen, color="black", marker="*", linestyle="", label=f"{result['threshold']:.4g}, held out")
    axes.set(title="choosing by the draft's confidence", xlabel="tokens per question", ylabel="right")
    axes.legend(fontsize="small", loc="lower right")


def _draw_budgets(figure: Figure, result: dict[str, Any]) -> None:
    axes = figure.subplots()
    budgets = list(result["summary"])
    places = range(len(budgets))
    for colour, (family, curves) in enumerate(result["families"].items()):
        forced = [curves["forced"][budget] for budget in budgets]
        axes.plot(places, forced, color=mpl.colormaps["tab20"](colour % 20), linewidth=1, label=family)
    axes.plot(places, list(result["summary"].values()), color="black", linewidth=2.5, label="all, answer forced")
    stopped = [result["stopped"][budget] for budget in budgets]
    axes.plot(places, stopped, color="black", linestyle=":", label="all, stopped without an answer")
    axes.axhline(result["standard"], color="grey", linestyle="--", label="all, standard mode")
    axes.set_xticks(places, budgets)
    axes.set(title="accuracy over thinking budget", xlabel="thinking tokens at most", ylim=(-0.02, 1.02))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_needles(figure: Figure, result: dict[str, Any]) -> None:
    axes = figure.subplots()
    grid = result["grid"]
    rows = list(zip(*grid["accuracy"], strict=True))  # depth downwards, length to the right
    image = axes.imshow(rows, cmap="RdYlGn", vmin=0.0, vmax=1.0, aspect="auto")
    for y, row in enumerate(rows):
        for x, accuracy in enumerate(row):
            axes.text(x, y, f"{accuracy:.0%}", ha="center", va="center", fontsize="small")
    axes.set_xticks(range(len(grid["lengths"])), [_in_k(length) for length in grid["lengths"]])
    axes.set_yticks(range(len(grid["depths"])), [f"{depth:.0%}" for depth in grid["depths"]])
    axes.set(title="codes found in standard mode", xlabel="tokens", ylabel="depth of the needle")
    figure.colorbar(image, ax=axes)


def _draw_mixes(figure: Figure, result: dict[str, Any]) -> None:
    figure.set_size_inches(12, 4.5)
    left, right = figure.subplots(1, 2)
    models = result["models"]
    ratios = sorted({model["ratio"] for model in models})
    for mode, colour in (("standard", "C0"), ("reasoning", "C1")):
        _draw_means(left, models, ratios, ("summary", mode), color=colour, marker="o", label=f"{mode} mode")
        for family in models[0]["families"]:
            _draw_means(left, models, ratios, ("families", family, mode), color=colour, linewidth=1, alpha=0.3)
        left.scatter(
            [ratios.index(model["ratio"]) for model in models],
            [model["summary"][mode] for model in models],
            color=colour,
            marker="x",
        )
        for style, sign in zip(("-", "--", "-.", ":"), models[0]["confusion"][mode], strict=True):
            look = {"color": colour, "linestyle": style, "linewidth": 2.5 if sign == "any" else 1}
            _draw_means(right, models, ratios, ("confusion", mode, sign), label=f"{mode}: {sign}", **look)
    left.set(title="held-out items right (x: one seed, faint: a family)", ylim=(-0.02, 1.02))
    right.set(title="answers that behave like the other mode")
    right.set_ylim(-0.002, max(0.1, right.get_ylim()[1]))
    for axes in (left, right):
        axes.set_xticks(range(len(ratios)), [f"{ratio:g} : 1" for ratio in ratios])
        axes.set_xlabel("reasoning tokens to standard tokens in training")
    left.legend(fontsize="small")
    right.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_means(axes: Axes, models: Sequence[Any], ratios: Sequence[float], path: Sequence[str], **look: Any) -> None:
    """The mean over the seeds of what `path` leads to in a model's results, for each ratio."""
    means = [fmean(reduce(getitem, path, model) for model in models if model["ratio"] == ratio) for ratio in ratios]
    axes.plot(range(len(ratios)), means, **look)


def _in_k(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
