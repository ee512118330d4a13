"""`twogear bench load`: one load on a server that runs already, as a table and one line of JSON."""

import argparse
import json
import subprocess
from dataclasses import asdict

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.load.checkpoints import checkpoint
from benchmarks.load.drive import Job
from benchmarks.load.statistics import Figures, figures
from benchmarks.load.suite import CHAT, drive_apart
from benchmarks.load.workload import Load, Prompts, requests
from server.cli_errors import UsageError

_LIMIT_SECONDS = 600.0


def run(args: argparse.Namespace) -> int:
    """Applies the load and prints the figures. Raises UsageError."""
    load = Load(
        streams=args.streams,
        mode=args.mode,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        requests=args.requests or args.streams,
        limit=_LIMIT_SECONDS,
        warm_up=0,
    )
    if min(load.streams, load.prompt_tokens, load.output_tokens, load.requests) < 1:
        raise UsageError("--streams, --requests, --prompt-tokens and --output-tokens must be at least 1")
    folder = args.model or checkpoint("embedded")
    if not (folder / "tokenizer.json").exists():
        raise UsageError(f"{folder} holds no tokenizer.json, by which prompts are measured")
    wanted = requests(load, Prompts(folder), f"{args.mode}", model=_model(args.url))
    try:
        outcome = drive_apart(Job(f"{args.url.rstrip('/')}{CHAT}", load.streams, load.limit, wanted))
    except subprocess.SubprocessError as error:
        raise UsageError(f"the load could not be applied: {error}") from error
    measured = figures(outcome.samples, outcome.seconds)
    errors = sorted({sample.error for sample in outcome.samples if sample.error is not None})
    Console().print(_table(load, measured))
    for why in errors:
        print(f"failed: {why}")
    print(json.dumps({"load": asdict(load), "figures": asdict(measured), "seconds": outcome.seconds}))
    return 1 if errors else 0


def _model(url: str) -> str:
    try:
        listed = httpx.get(f"{url.rstrip('/')}/v1/models", timeout=10).raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UsageError(f"no server answers at {url} ({error}); start one with `twogear serve`") from error
    return str(listed["data"][0]["id"])


def _table(load: Load, measured: Figures) -> Table:
    table = Table("figure", "median", "p95", title=f"{load.name}: {load.requests} requests")
    table.add_row("output tokens/s", _number(measured.tokens_per_second, 1, ""), "")
    table.add_row("first token", _number(measured.first, 1e3), _number(measured.first_p95, 1e3))
    table.add_row("first answer token", _number(measured.first_answer, 1e3), _number(measured.first_answer_p95, 1e3))
    table.add_row("per output token", _number(measured.per_token, 1e3), _number(measured.per_token_p95, 1e3))
    return table


def _number(value: float | None, scale: float, unit: str = " ms") -> str:
    return "-" if value is None else f"{value * scale:,.1f}{unit}"
