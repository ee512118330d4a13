"""What is measured beside the servers: the bare engine, transformers' generate(), and another load generator on ours.

Each runs in a process of its own, with a time limit. If one fails, the results say why.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load.workload import MODEL_NAME, SAMPLING, Load, Prompts, requests

_BARE_LIMIT, _GENERATE_LIMIT, _BENCH_LIMIT = 300, 300, 180
_LONG_PROMPT = 2000
"""From here on generate() takes minutes, and prompts are what the engine spends its time on."""


BARE_ENGINE, TRANSFORMERS, VLLM_BENCH = "bare-engine", "transformers", "vllm-bench"
NAMES = (TRANSFORMERS, BARE_ENGINE, VLLM_BENCH)


class Beside:
    """`results` holds what was measured, by name."""

    def __init__(self, checkpoint: Path, prompts: Prompts, loads: Sequence[Load]) -> None:
        self.results: dict[str, Any] = {}
        self._checkpoint = checkpoint
        self._prompts = prompts
        self._loads = loads

    def bare_engine(self, number: int) -> None:
        """The loads of short prompts without a server, for one round."""
        loads = [load for load in self._loads if load.prompt_tokens < _LONG_PROMPT]
        job = {
            "checkpoint": str(self._checkpoint),
            "loads": [
                {"warm_up": self._batch(load, number, warm_up=True), "requests": self._batch(load, number)}
                for load in loads
            ],
        }
        measured = _run("benchmarks.load.bare_engine", job, _BARE_LIMIT)
        if not isinstance(measured, dict):
            measured = {load.name: one for load, one in zip(loads, measured, strict=True)}
        self.results.setdefault(BARE_ENGINE, []).append(measured)

    def transformers(self) -> None:
        """generate() on the loads of one mode."""
        loads = [load for load in self._loads if load.mode != "half" and load.prompt_tokens < _LONG_PROMPT]
        job = {"checkpoint": str(self._checkpoint), "loads": [self._generate(load) for load in loads]}
        measured = _run("benchmarks.peers.transformers_loop", job, _GENERATE_LIMIT)
        if "loads" in measured:
            measured["loads"] = {load.name: one for load, one in zip(loads, measured["loads"], strict=True)}
        self.results[TRANSFORMERS] = measured

    def vllm_bench(self, url: str) -> None:
        """`vllm bench serve` on the running server, with the widest load of standard mode."""
        load = max((load for load in self._loads if load.mode == "standard"), key=lambda load: load.streams)
        arguments = (
            *("--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions"),
            *("--model", MODEL_NAME, "--tokenizer", str(self._checkpoint), "--dataset-name", "random"),
            *("--random-input-len", str(load.prompt_tokens), "--random-output-len", str(load.output_tokens)),
            *("--num-prompts", str(load.streams), "--max-concurrency", str(load.streams)),
            *("--ignore-eos", "--temperature", "0", "--disable-tqdm"),
        )
        measured = _run("benchmarks.peers.vllm_bench", None, _BENCH_LIMIT, arguments)
        self.results[VLLM_BENCH] = {**measured, "load": load.name, "command": " ".join(arguments)}

    def _batch(self, load: Load, number: int, *, warm_up: bool = False) -> list[dict[str, Any]]:
        """One batch of the load as token ids; empty for the warm-up of a load that has none."""
        if warm_up and not load.warm_up:
            return []
        return [
            {
                "prompt_ids": self._ids(request.body["messages"][0]["content"], thinks=request.thinks),
                "sampling": {"max_tokens": request.body["max_tokens"], "ignore_eos": True, **SAMPLING[request.thinks]},
            }
            for request in requests(load, self._prompts, str(number), warm_up=warm_up)[: load.streams]
        ]

    def _generate(self, load: Load) -> dict[str, Any]:
        batch = self._batch(load, 0)
        return {
            "prompts": [request["prompt_ids"] for request in batch],
            "thinks": load.mode == "reasoning",
            "output_tokens": load.output_tokens,
        }

    def _ids(self, text: str, *, thinks: bool) -> list[int]:
        return self._prompts.ids(text, thinks=thinks)


def _run(module: str, job: Mapping[str, Any] | None, limit: float, arguments: Sequence[str] = ()) -> Any:
    """The JSON that the module writes to stdout, or the reason why there is none."""
    command = [sys.executable, "-m", module, *arguments]
    given = json.dumps(job) if job is not None else ""
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:g} s"}
    if done.returncode != 0:
        (last,) = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
        return {"failed": f"status {done.returncode}: {last[-300:]}"}
    return json.loads(done.stdout)
