"""`twogear bench load`: one load on a server that runs already, as a table and one line of JSON."""

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.load.checkpoints import checkpoint
from benchmarks.load.drive import Job, Request
from benchmarks.load.statistics import Figures, figures
from benchmarks.load.suite import CHAT, drive_by
from benchmarks.load.workload import SAMPLING, Load, Mode, Prompts, requests
from server.access.keys import client_headers
from server.cli_errors import UsageError

_LIMIT_SECONDS = 600.0
_OF_PEERS = frozenset({"chat_template_kwargs", *SAMPLING[True]})
"""What a body has for servers without modes."""


def run(args: argparse.Namespace) -> int:
    """Applies the load and prints the figures. Raises UsageError."""
    requests_in_all = args.requests or args.streams
    if min(args.streams, args.prompt_tokens, args.output_tokens, requests_in_all, args.clients) < 1:
        raise UsageError("--streams, --requests, --prompt-tokens, --output-tokens and --clients must be at least 1")
    if args.clients > min(args.streams, requests_in_all):
        raise UsageError("--clients: there are no more than there are streams and requests")
    listed = _models(args.url)
    mode = _kind_of_load(args.mode, listed)
    load = Load(
        streams=args.streams,
        mode=mode,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        requests=requests_in_all,
        limit=_LIMIT_SECONDS,
        warm_up=0,
    )
    folder = args.model or checkpoint("embedded")
    if not (folder / "tokenizer.json").exists():
        raise UsageError(f"{folder} holds no tokenizer.json, by which prompts are measured")
    wanted = requests(load, Prompts(folder), args.mode, model=str(listed[0]["id"]))
    if mode != "half":
        wanted = [_in_mode(request, args.mode) for request in wanted]
    try:
        outcomes = drive_by(Job(f"{args.url.rstrip('/')}{CHAT}", load.streams, load.limit, wanted), args.clients)
    except subprocess.SubprocessError as error:
        raise UsageError(f"the load could not be applied: {error}") from error
    samples = [sample for outcome in outcomes for sample in outcome.samples]
    seconds = max(outcome.seconds for outcome in outcomes)
    cores = [outcome.client_cpu / outcome.seconds if outcome.seconds else 0.0 for outcome in outcomes]
    measured = figures(samples, seconds)
    errors = sorted({sample.error for sample in samples if sample.error is not None})
    held = listed[0].get("weights")  # which a peer does not tell
    Console().print(_table(load, measured, held))
    print(f"the clients took {', '.join(f'{share:.2f}' for share in cores)} of a core")
    for why in errors:
        print(f"failed: {why}")
    told = {"load": asdict(load), "weights": held, "figures": asdict(measured), "seconds": seconds}
    print(json.dumps(told | {"client_cores": cores}))
    return 1 if errors else 0


def _kind_of_load(mode: str, listed: Sequence[Mapping[str, Any]]) -> Mode:
    """The load of requests in a mode that the server lists; raises UsageError for any other but `half`."""
    if mode == "half":
        return "half"
    kinds = {model.get("reasoning_mode"): model.get("kind") for model in listed[1:]}
    if mode not in kinds:
        raise UsageError(f"--mode {mode}: the server has {', '.join(map(str, kinds)) or 'no modes'}; or say half")
    return "reasoning" if kinds[mode] == "thinking" else "standard"


def _in_mode(request: Request, mode: str) -> Request:
    """The same request with the mode's own template and sampling."""
    body = {name: value for name, value in request.body.items() if name not in _OF_PEERS}
    return replace(request, body={**body, "reasoning_mode": mode})


def _models(url: str) -> list[dict[str, Any]]:
    try:
        listed = (
            httpx.get(f"{url.rstrip('/')}/v1/models", headers=client_headers(), timeout=10).raise_for_status().json()
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UsageError(f"no server answers at {url} ({error}); start one with `twogear serve`") from error
    return list(listed["data"])


def _table(load: Load, measured: Figures, weights: str | None) -> Table:
    held = f", weights {weights}" if weights else ""
    table = Table("figure", "median", "p95", title=f"{load.name}: {load.requests} requests{held}")
    table.add_row("output tokens/s", _number(measured.tokens_per_second, 1, ""), "")
    table.add_row("first token", _number(measured.first, 1e3), _number(measured.first_p95, 1e3))
    table.add_row("first answer token", _number(measured.first_answer, 1e3), _number(measured.first_answer_p95, 1e3))
    table.add_row("per output token", _number(measured.per_token, 1e3), _number(measured.per_token_p95, 1e3))
    return table


def _number(value: float | None, scale: float, unit: str = " ms") -> str:
    return "-" if value is None else f"{value * scale:,.1f}{unit}"
