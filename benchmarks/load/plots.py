"""A result as plots. The same result always gives the same SVG text, so that a test can compare it."""

import io
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.load import tables
from benchmarks.load.records import Result

_SIZE = (9.0, 4.0)  # inches
_SETTINGS: dict[Any, Any] = {"svg.hashsalt": "twogear", "svg.fonttype": "none", "font.size": 9.0}


def throughput(result: Result) -> str:
    """Output tokens per second by load, as shares of the fastest server: a bar for each server, the slowest left."""
    names = tables.servers(result)
    speeds = {
        name: [
            one.tokens_per_second or 0.0 if (one := tables.of_load(result, name, load.name)) is not None else 0.0
            for load in result.loads
        ]
        for name in names
    }
    best = [max(one, default=0.0) or 1.0 for one in zip(*speeds.values(), strict=True)]
    shares = {name: [100 * a / b for a, b in zip(of_name, best, strict=True)] for name, of_name in speeds.items()}
    return _bars(result, shares, "output tokens per second, % of the fastest")


def per_token(result: Result) -> str:
    """Milliseconds between two tokens of a request, by load, median."""
    values = {
        name: [
            1e3 * (one.per_token or 0.0) if (one := tables.of_load(result, name, load.name)) is not None else 0.0
            for load in result.loads
        ]
        for name in tables.servers(result)
    }
    return _bars(result, values, "ms per output token, median")


def _bars(result: Result, values: Mapping[str, list[float]], title: str) -> str:
    """Groups of bars: a group for each load, a bar for each key of `values`."""
    import matplotlib as mpl  # noqa: PLC0415 - seconds that only plots need

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    with mpl.rc_context(_SETTINGS):
        figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
        width = 0.8 / max(len(values), 1)
        for number, (name, heights) in enumerate(values.items()):
            places = [at + (number - (len(values) - 1) / 2) * width for at in range(len(heights))]
            axes.bar(places, heights, width, label=name)
        labels = [load.name.replace(" ", "\n") for load in result.loads]
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlabel("streams, mode, prompt tokens")
        axes.set_title(f"{title} ({result.what}, {result.machine.cores} cores of {result.machine.cpu}, {result.date})")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, ncols=max(len(values), 1))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return text.getvalue()


PLOTS: Mapping[str, Callable[[Result], str]] = {"plot-throughput": throughput, "plot-per-token": per_token}
