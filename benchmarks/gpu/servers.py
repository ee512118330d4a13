"""The real server on a GPU: `python -m benchmarks.gpu.servers answers|limits|speed`.

answers  both modes, budgets, a schema, log-probabilities; budgets of many requests, 64 at once
limits   what once ended the engine is refused, and those beside it get their answers
speed    the same loads on Twogear and on vLLM's own server with its own model class, one after the other

vLLM tells of each kernel that is compiled after its own warm-up (`--jit-monitor-verbose`). What it tells of Twogear
after `Ready` makes the command fail, at its end: `--jit-monitor-mode error` would end a step at the first one.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.gpu.results import result, results_folder
from benchmarks.load.checkpoints import checkpoint

TWOGEAR = [sys.executable, "-c", "import sys; from server.cli import main; sys.exit(main())"]
QUESTION = {"messages": [{"role": "user", "content": "12+34="}], "max_tokens": 400}
LOADS = "1,2,64 1,4,256 32,64,256 128,384,256 512,1024,256 1024,2048,256"
"""Streams, requests, tokens of each; the first warms up. Another list: the variable TWOGEAR_CHECK_LOADS."""
BUDGETS = 192
"""Requests with one. Another number: the variable TWOGEAR_CHECK_BUDGETS."""
READY, COMPILED = "Ready after", "during inference"
"""What Twogear says when it takes requests, and vLLM's monitor of a kernel that is compiled."""
_START_SECONDS, _LOAD_SECONDS, _END_SECONDS = 200, 120, 20
_CLIENTS = 4
"""Processes that share a load of many streams: one would be the limit beside a quick server."""


@contextmanager
def running(name: str, command: Sequence[str], port: int, environment: Mapping[str, str] = {}) -> Iterator[str]:
    """The server's address, once it is ready. Its log lies beside the results. Raises RuntimeError."""
    log, began = results_folder() / f"{name}.log", time.monotonic()
    with log.open("w") as opened:
        process = subprocess.Popen(
            command, stdout=opened, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **environment}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() - began > _START_SECONDS:
                raise RuntimeError(f"{name} did not come up: {log.read_text()[-3000:]}")
            time.sleep(0.5)
        result(f"{name} ready after", f"{time.monotonic() - began:.1f} s")
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        result(f"{name} ended", f"exit code {process.wait()}")
    if compiled := compiled_late(log.read_text(errors="replace")):
        raise RuntimeError(f"{name} compiled after Ready, {len(compiled)} times: {'; '.join(compiled)[:2000]}")


def compiled_late(log: str) -> list[str]:
    """What vLLM's monitor has told after Twogear was ready; nothing where another server wrote the log."""
    _, said, after = log.partition(READY)
    return [line for line in after.splitlines() if COMPILED in line] if said else []


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def ask(url: str, **fields: Any) -> dict[str, Any]:
    """What a chat request is answered, errors too."""
    answer: dict[str, Any] = httpx.post(f"{url}/v1/chat/completions", json=QUESTION | fields, timeout=60).json()
    return answer


def answers() -> None:
    """Both modes, budgets, a schema, log-probabilities, many at once."""
    port = 8101
    with running("twogear-embedded", _twogear(checkpoint("embedded"), port), port) as url:
        for mode in ("standard", "reasoning"):
            for temperature in (0, 1.0):
                answer = ask(url, reasoning_mode=mode, temperature=temperature, seed=5)
                result(f"answers {mode} at {temperature}", json.dumps(answer)[:700])
        shape = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": shape}}
        for mode in ("standard", "reasoning"):
            answer = ask(url, reasoning_mode=mode, response_format=form)
            result(f"answers schema {mode}", json.dumps(answer.get("choices", answer))[:500])
        answer = ask(url, reasoning_mode="standard", logprobs=True, top_logprobs=3, max_tokens=3)
        result("answers log-probabilities", json.dumps(answer.get("choices", answer))[:600])
        result("answers budgets", _budgets(url))


def _budgets(url: str) -> str:
    """Many of them, 64 at once: how many were kept, and how many sums are right."""
    number_of = int(os.environ.get("TWOGEAR_CHECK_BUDGETS", BUDGETS))

    def one(number: int) -> tuple[bool, bool]:
        budget = 24 if number % 3 else 200
        a, b = number * 7 % 90 + 1, number * 11 % 90 + 1
        question = [{"role": "user", "content": f"{a}+{b}="}]
        fields = {"messages": question, "temperature": 0, "max_tokens": 600, "thinking_token_budget": budget}
        answer = ask(url, reasoning_mode="reasoning", **fields)
        thought = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
        return thought <= budget, str(a + b) in str(answer["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(64) as pool:
        kept, right = zip(*pool.map(one, range(number_of)), strict=True)
    return f"{sum(kept)} of {number_of} kept, {sum(right)} sums right"


def limits() -> None:
    """Two requests that vLLM's V2 runner cannot take, and one after each."""
    port = 8104
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "128 stop tokens": {"min_tokens": 1, "stop_token_ids": list(range(100, 228))},
        "plain again": {},
        "1024 biases": {"logit_bias": {str(i): -1 for i in range(1024)}, "tools": [tool], "tool_choice": "none"},
        "and again": {},
    }
    with running("twogear-limits", _twogear(checkpoint("embedded"), port), port) as url:
        for name, fields in cases.items():
            began = time.monotonic()
            answer = ask(url, reasoning_mode="standard", **fields)
            said = answer.get("error") or answer["choices"][0]["message"]
            result(f"limits {name}", f"{time.monotonic() - began:.3f} s {json.dumps(said)[:300]}")


def speed() -> None:
    """Loads of the large checkpoint, half of the requests in each mode. TWOGEAR_CHECK_SERVERS names the servers."""
    folder = checkpoint("large")
    template = str(Path(__file__).parents[1] / "peers" / "chat_template.jinja")
    options = ["--host", "127.0.0.1", "--port", "8103", "--chat-template", template, "--reasoning-parser", "qwen3"]
    python = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *options]
    # `vllm serve` alone knows the front end in Rust: the module above starts that in Python all the same.
    rust = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), *options]
    servers: dict[str, tuple[int, list[str], dict[str, str]]] = {
        "twogear": (8102, _twogear(folder, 8102), {}),
        "vllm": (8103, python, {"VLLM_PLUGINS": ""}),
        "vllm-rust": (8103, rust, {"VLLM_PLUGINS": "", "VLLM_USE_RUST_FRONTEND": "1"}),
    }
    there = "twogear vllm vllm-rust" if _has_rust_front_end() else "twogear vllm"
    for name in os.environ.get("TWOGEAR_CHECK_SERVERS", there).split():
        port, command, environment = servers[name]
        with running(f"{name}-large", command, port, environment) as url:
            for number, load in enumerate(os.environ.get("TWOGEAR_CHECK_LOADS", LOADS).split()):
                figures = _load(url, folder, *load.split(","))
                if number:
                    result(f"speed {name} {load}", figures)


def _has_rust_front_end() -> bool:
    return (Path(vllm_file()).parent / "vllm-rs").exists()


def vllm_file() -> str:
    """Where vLLM is, which is not imported for it. Raises RuntimeError."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise RuntimeError("vLLM cannot be imported")
    return spec.origin


def _load(url: str, folder: Path, streams: str, requests: str, tokens: str) -> str:
    asked = ["--streams", streams, "--requests", requests, "--output-tokens", tokens, "--prompt-tokens", "500"]
    asked += ["--clients", str(_CLIENTS if int(streams) > _CLIENTS else 1)]
    command = [*TWOGEAR, "bench", "load", "--url", url, "--model", str(folder), "--mode", "half", *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LOAD_SECONDS, check=False)
    return (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1][:700]


def _twogear(folder: Path, port: int) -> list[str]:
    options = ["--jit-monitor-verbose", *os.environ.get("TWOGEAR_CHECK_ENGINE_OPTIONS", "").split()]
    return [*TWOGEAR, "serve", str(folder), "--port", str(port), "--verbose", "--", *options]


STAGES = {"answers": answers, "limits": limits, "speed": speed}


def main() -> None:
    """Runs one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.servers")
    parser.add_argument("stage", choices=STAGES)
    STAGES[parser.parse_args().stage]()


if __name__ == "__main__":
    main()
