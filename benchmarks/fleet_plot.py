"""Draws a simulated fleet's result: `python -m benchmarks.fleet_plot RESULT... OUTPUT`."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_PANELS = (
    ("first_direct_p95", "first token of direct answers, p95, seconds"),
    ("cached", "share of later prompts that was found"),
)


def draw(figures: list[dict[str, Any]], output: Path) -> None:
    """Writes an SVG: a line for each way of routing, over the number of replicas."""
    with mpl.rc_context({"svg.hashsalt": "twogear", "svg.fonttype": "none"}):  # the same data gives the same file
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        for axes, (field, title) in zip(figure.subplots(1, 2), _PANELS, strict=True):
            for policy in dict.fromkeys(one["policy"] for one in figures):
                points = sorted((one["replicas"], one[field]) for one in figures if one["policy"] == policy)
                axes.plot(*zip(*points, strict=True), marker="o", label=policy)
            axes.set(title=title, xlabel="replicas (simulated)", xscale="log", ylim=(0, None))
        axes.legend(fontsize="small")
        figure.savefig(output, metadata={"Date": None})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="of benchmarks.fleet")
    parser.add_argument("output", type=Path, help="an SVG")
    args = parser.parse_args()
    draw([one for path in args.results for one in json.loads(path.read_text())["figures"]], args.output)


if __name__ == "__main__":
    main()
