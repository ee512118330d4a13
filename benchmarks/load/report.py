"""`twogear bench report`: the tables and plots of docs/performance.md, from the result files that it names.

A block of the document begins with `<!-- bench TABLE FILE -->` and ends with `<!-- end -->`. This file writes what is
between them. The text around the blocks is written by hand.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.load import goals, plots, tables
from benchmarks.load.records import RESULTS, ROOT, Result, read
from server.cli_errors import UsageError

DOCUMENT = ROOT / "docs" / "performance.md"
_FEWER_BITS = ("twogear-int8", "twogear-int4", "llama.cpp-q8_0", "llama.cpp-q4_k_m")
_BLOCK = re.compile(r"<!-- bench (?P<table>[\w-]+) (?P<file>\S+\.json) -->\n(?P<content>.*?)<!-- end -->\n", re.DOTALL)


def run(args: argparse.Namespace) -> int:
    """Rewrites the document and its plots. Raises UsageError."""
    text = DOCUMENT.read_text()
    for path in args.results:
        text = _repoint(text, path)
    DOCUMENT.write_text(render(text))
    for path, svg in drawings(text).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(svg)
    print(f"written: {DOCUMENT.relative_to(ROOT)}")
    return 0


def render(text: str) -> str:
    """The document with every block filled from its result file. Raises UsageError."""
    return _BLOCK.sub(_fill, text)


def drawings(text: str) -> dict[Path, str]:
    """The plots of the document as SVG, by the files to which they go."""
    plotted = [(match["table"], match["file"]) for match in _BLOCK.finditer(text) if match["table"] in plots.PLOTS]
    return {_drawing(name, file): plots.PLOTS[name](_result(file)) for name, file in plotted}


def _fill(match: re.Match[str]) -> str:
    name, file = match["table"], match["file"]
    if name in plots.PLOTS:
        content = f"![{name}]({_drawing(name, file).relative_to(DOCUMENT.parent)})\n"
    elif name in _TABLES:
        content = _TABLES[name](_result(file))
    else:
        raise UsageError(
            f"{DOCUMENT.name}: there is no table {name!r}; there are {', '.join([*_TABLES, *plots.PLOTS])}"
        )
    return f"<!-- bench {name} {file} -->\n{content}<!-- end -->\n"


def _result(file: str) -> Result:
    try:
        return read(ROOT / file)
    except FileNotFoundError as error:
        raise UsageError(f"{DOCUMENT.name} names {file}, which does not exist") from error


def _drawing(name: str, file: str) -> Path:
    return DOCUMENT.parent / "performance" / f"{_kind(Path(file))}-{name}.svg"


def _repoint(text: str, path: Path) -> str:
    """Points the blocks that show an older result of the same kind to this one."""
    resolved = path.resolve()
    if not resolved.is_file() or not resolved.is_relative_to(RESULTS):
        raise UsageError(f"{path} is no result file under {RESULTS.relative_to(ROOT)}")
    older = rf"benchmarks/results/bench_{_kind(resolved)}_\S+\.json"
    return re.sub(older, str(resolved.relative_to(ROOT)), text)


def _kind(path: Path) -> str:
    """What was measured: the second part of `bench_<what>_<hardware>_<date>`."""
    return path.stem.split("_")[1]


def _machine(result: Result) -> str:
    machine = result.machine
    programs = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return (
        f"{result.date}, commit {result.commit}: {machine.cores} cores of {machine.cpu}, "
        f"{machine.memory / 2**30:.0f} GiB, Linux {machine.kernel}. Measured on it: "
        f"{machine.read_bandwidth / 1e9:.1f} GB/s read, {machine.bf16_matmul / 1e9:.0f} GFLOP/s of bf16 products.\n"
        f"{programs}.\n"
    )


def _limits(result: Result) -> str:
    """Latency at one load beside its limit, in milliseconds: the first token, and one token after another.

    The limit counts two bytes a weight, so servers with fewer bits are not beside it.
    """
    rows = []
    for load in result.loads:
        names = [name for name in tables.servers(result) if name not in _FEWER_BITS]
        best = [one for name in names if (one := tables.of_load(result, name, load.name)) is not None]
        first = [one.first for one in best if one.first is not None]
        per_token = [one.per_token for one in best if one.per_token is not None]
        rows.append(
            [
                load.name,
                _beside(first, tables.first_token_limit(result, load)),
                _beside(per_token, tables.per_token_limit(result, load)),
            ]
        )
    return tables.Cells(["load", "first token: best / limit, ms", "per token: best / limit, ms"], rows).markdown()


def _beside(measured: Sequence[float], limit: float) -> str:
    best = f"{min(measured) * 1e3:,.1f}" if measured else tables.NOTHING
    return f"{best} / {limit * 1e3:,.2f}"


def _failures(result: Result) -> str:
    lines = tables.failures(result)
    return "".join(f"- {line}\n" for line in lines) if lines else "Nothing failed.\n"


def _commands(result: Result) -> str:
    lines = []
    for name, start in result.starts.items():
        environment = [f"{key}={value}" for key, value in start["environment"].items()]
        lines.append(f"- {name}: `{' '.join([*environment, start['command']])}`\n")
    return f"`{result.command}`\n\n" + "".join(lines)


_TABLES: Mapping[str, Callable[[Result], str]] = {
    "machine": _machine,
    "commands": _commands,
    "goals": lambda result: goals.table(result).markdown(),
    "throughput": lambda result: tables.throughput(result).markdown(),
    "latency": lambda result: tables.latency(result).markdown(),
    "costs": lambda result: tables.costs(result).markdown(),
    "starts": lambda result: tables.starts(result).markdown(),
    "limits": _limits,
    "cross-check": lambda result: tables.cross_check(result).markdown(),
    "failures": _failures,
}
