"""A result as tables, with the limits that the hardware sets. Cells are text, for whoever shows them.

The table on the terminal and those of docs/performance.md are made of the same cells.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from benchmarks.load import limits
from benchmarks.load.beside import BARE_ENGINE, TRANSFORMERS, VLLM_BENCH
from benchmarks.load.limits import Shape
from benchmarks.load.records import LoadRecord, Result
from benchmarks.load.statistics import Figures, figures, over_rounds
from benchmarks.load.workload import Load

NOTHING = "–"


@dataclass(frozen=True)
class Cells:
    """A table: `rows` have as many cells as `head`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def servers(result: Result) -> list[str]:
    """The servers that were started, in the order of their start."""
    return list(dict.fromkeys(record.server for record in result.rounds))


def of_load(result: Result, server: str, load: str) -> Figures | None:
    """The medians over the rounds; None if the server has no figures."""
    rounds = [figures(one.samples, one.seconds) for one in _load_records(result, server, load)]
    return over_rounds(rounds) if rounds else None


def throughput(result: Result) -> Cells:
    """Output tokens per second by load and server, beside the limit and, if measured, the bare engine."""
    names = servers(result)
    shape = Shape(**result.model["shape"])
    rows = []
    for load in result.loads:
        cells = [_number(_speed(result, name, load)) for name in names]
        limit = limits.tokens_per_second(shape, result.machine, load)
        rows.append(
            [
                load.name,
                *cells,
                _number(bare_speed(result, load)),
                _number(generate_speed(result, load)),
                _number(limit),
            ]
        )
    return _without_empty(Cells(["load", *names, "bare engine", "generate()", "limit"], rows))


def latency(result: Result) -> Cells:
    """Milliseconds, median / 95th percentile, by load and server."""
    rows = []
    for load in result.loads:
        for name in servers(result):
            if (one := of_load(result, name, load.name)) is not None:
                cells = [
                    _pair(one.first, one.first_p95),
                    _pair(one.first_answer, one.first_answer_p95),
                    _pair(one.per_token, one.per_token_p95),
                ]
                rows.append([load.name, name, *cells])
    return Cells(["load", "server", "first token", "first answer token", "per output token"], rows)


def costs(result: Result) -> Cells:
    """CPU time per output token by process, the client's included, and memory."""
    rows = []
    for load in result.loads:
        for name in servers(result):
            if used := _load_records(result, name, load.name):
                micro = [_median_of(used, part) for part in (_front_end, _engine, _client)]
                memory = statistics.median(one.memory for one in used) / 2**30
                rows.append([load.name, name, *map(_number, micro), f"{memory:.2f}"])
    return Cells(["load", "server", "front end, µs", "engine, µs", "client, µs", "memory, GiB"], rows)


def starts(result: Result) -> Cells:
    """Seconds from the start to ready and to the first token: at the first start, and the median of later ones."""
    rows = []
    for name in servers(result):
        of_server = [one for one in result.rounds if one.server == name]
        later = [one for one in of_server[1:] if one.failed is None]
        rows.append(
            [
                name,
                _seconds([of_server[0].ready]),
                _seconds([of_server[0].first_token]),
                _seconds([one.ready for one in later]),
                _seconds([one.first_token for one in later]),
            ]
        )
    return Cells(["server", "first start: ready", "first token", "later starts: ready", "first token"], rows)


def cross_check(result: Result) -> Cells:
    """Tokens per second of Twogear by our client and, in the same round, by `vllm bench serve`."""
    other = result.beside.get(VLLM_BENCH, {})
    if "output_throughput" not in other:
        return Cells(["load", "our client", "vllm bench serve"], [])
    ours = _load_records(result, "twogear", other["load"])[:1]
    speeds = [figures(one.samples, one.seconds).tokens_per_second for one in ours]
    cells = [_number(speeds[0] if speeds else None), _number(other["output_throughput"])]
    return Cells(["load", "our client", "vllm bench serve"], [[other["load"], *cells]])


def per_token_limit(result: Result, load: Load, server: str | None = None) -> float:
    """The least seconds between two tokens of a request, by the bandwidth beside that server's loads, or all."""
    shape = Shape(**result.model["shape"])
    machine = result.machine
    asked = [server] if server is not None else servers(result)
    beside = [one.read_bandwidth for name in asked for one in _load_records(result, name, load.name)]
    if known := [bandwidth for bandwidth in beside if bandwidth is not None]:
        machine = replace(machine, read_bandwidth=statistics.median(known))
    return limits.step_seconds(shape, machine, load.streams, load.prompt_tokens + load.output_tokens // 2)


def first_token_limit(result: Result, load: Load) -> float:
    """The least seconds to the first token if all streams begin at once."""
    shape = Shape(**result.model["shape"])
    return limits.prefill_seconds(shape, result.machine, load.prompt_tokens)


def failures(result: Result) -> list[str]:
    """The failures, one line each."""
    lines = [f"{one.server}, round {one.round}: {one.failed}" for one in result.rounds if one.failed is not None]
    for record in result.rounds:
        for load, one in record.loads.items():
            errors = [sample.error for sample in one.samples if sample.error is not None]
            if errors:
                lines.append(f"{record.server}, round {record.round}, {load}: {len(errors)} failed: {errors[0]}")
    for name, measured in result.beside.items():
        found = measured if isinstance(measured, list) else [measured]
        lines += [f"{name}: {one['failed']}" for one in found if "failed" in one]
    return lines


def overview(result: Result) -> Table:
    """Throughput for the terminal."""
    cells = throughput(result)
    table = Table(*cells.head, title=f"output tokens per second, {result.what}")
    for row in cells.rows:
        table.add_row(*row)
    return table


def bare_speed(result: Result, load: Load) -> float | None:
    """Tokens per second of the engine without a server; median over the rounds."""
    rounds = [one[load.name] for one in result.beside.get(BARE_ENGINE, []) if load.name in one]
    return statistics.median(one["tokens"] / one["seconds"] for one in rounds) if rounds else None


def front_end_cpu(result: Result, server: str, load: str) -> float | None:
    """Microseconds of the front end per output token; median over the rounds."""
    return _median_of(_load_records(result, server, load), _front_end)


def generate_speed(result: Result, load: Load) -> float | None:
    """Tokens per second of transformers' generate()."""
    one = result.beside.get(TRANSFORMERS, {}).get("loads", {}).get(load.name)
    return one["tokens"] / one["seconds"] if one is not None else None


def _load_records(result: Result, server: str, load: str) -> list[LoadRecord]:
    return [one.loads[load] for one in result.rounds if one.server == server and load in one.loads]


def _speed(result: Result, server: str, load: Load) -> float | None:
    one = of_load(result, server, load.name)
    return one.tokens_per_second if one is not None else None


def _front_end(used: LoadRecord) -> float:
    return used.front_end_cpu


def _engine(used: LoadRecord) -> float:
    return used.engine_cpu


def _client(used: LoadRecord) -> float:
    return used.client_cpu


def _median_of(used: Sequence[LoadRecord], part: Callable[[LoadRecord], float]) -> float | None:
    """Microseconds per output token."""
    tokens = [(one, sum(sample.completion_tokens for sample in one.samples)) for one in used]
    values = [1e6 * part(one) / count for one, count in tokens if count]
    return statistics.median(values) if values else None


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _pair(median: float | None, p95: float | None) -> str:
    if median is None or p95 is None:
        return NOTHING
    return f"{_number(median * 1e3)} / {_number(p95 * 1e3)}"


def _seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.1f} s" if known else NOTHING


def _without_empty(cells: Cells) -> Cells:
    """The table without empty columns."""
    kept = [at for at in range(len(cells.head)) if any(row[at] != NOTHING for row in cells.rows)]
    return Cells([cells.head[at] for at in kept], [[row[at] for at in kept] for row in cells.rows])
