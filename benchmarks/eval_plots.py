"""Draws a result: `python -m benchmarks.eval_plots RESULT OUTPUT`.

There are plots of `twogear eval budgets`, `twogear eval needles` and the study of mixes (training/mixes.py). Those
in the docs are made with it; the format is the output's suffix (.svg, .png).
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure


def draw(result: dict[str, Any], output: Path) -> None:
    """Writes the plot of a result. Raises ValueError for one that has none."""
    draws = {"eval budgets": _draw_budgets, "eval needles": _draw_needles, "mixes": _draw_mixes}
    if result.get("what") not in draws:
        raise ValueError(f"no plot of {result.get('what')!r}; there are plots of {', '.join(draws)}")
    with mpl.rc_context({"svg.hashsalt": "twogear", "svg.fonttype": "none"}):  # the same data gives the same file
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        draws[result["what"]](figure, result)
        figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


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
    mixes = result["mixes"]
    places = range(len(mixes))
    for mode, colour in (("standard", "C0"), ("reasoning", "C1")):
        left.plot(places, [mix["summary"][mode] for mix in mixes], marker="o", color=colour, label=f"{mode} mode")
        for family in mixes[0]["families"]:
            points = [mix["families"][family][mode] for mix in mixes]
            left.plot(places, points, color=colour, linewidth=1, alpha=0.3)
        for style, sign in zip(("-", "--", "-.", ":"), mixes[0]["confusion"][mode], strict=True):
            points = [mix["confusion"][mode][sign] for mix in mixes]
            right.plot(
                places, points, style, color=colour, linewidth=2.5 if sign == "any" else 1, label=f"{mode}: {sign}"
            )
    left.set(title="held-out items right (faint: by family)", ylim=(-0.02, 1.02))
    right.set(title="answers that behave like the other mode")
    right.set_ylim(-0.002, max(0.1, right.get_ylim()[1]))
    for axes in (left, right):
        axes.set_xticks(places, [f"{mix['ratio']:g} : 1" for mix in mixes])
        axes.set_xlabel("reasoning tokens to standard tokens in training")
    left.legend(fontsize="small")
    right.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _in_k(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
