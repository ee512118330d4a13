"""`twogear bench`: the command line of the load benchmarks, which benchmarks/load/ carries out."""

import argparse
from pathlib import Path

from server.urls import server_url

HELP = "measure speed: of a running server, or of Twogear and other servers side by side"
_SERVERS = ("twogear", "vllm", "vllm-tuned", "llama.cpp", "transformers", "bare-engine", "vllm-bench")
_OTHERS = ("twogear-int8", "twogear-int4", "llama.cpp-q8_0", "llama.cpp-q4_k_m", "vllm-rust")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "what",
        choices=("quick", "embedded", "large", "load", "report"),
        help="quick: Twogear and its bare engine in minutes; embedded, large: all servers with that model; load: one "
        "load on a running server; report: docs/performance.md from the result files",
    )
    suites = parser.add_argument_group("quick, embedded, large")
    suites.add_argument(
        "--servers",
        metavar="A,B",
        help=f"of {', '.join((*_SERVERS, *_OTHERS))}; if not given, twogear,bare-engine for quick, else the first "
        f"{len(_SERVERS)}",
    )
    suites.add_argument("--rounds", type=int, default=2, help="how often each server is started, in turn")
    suites.add_argument("--minutes", type=float, default=60, help="no round is begun that would end later")
    suites.add_argument("--json", type=Path, metavar="FILE", help="a dated file under benchmarks/results/ if not given")
    load = parser.add_argument_group("load")
    load.add_argument(
        "--url", type=server_url, default="http://127.0.0.1:8000",
        help="the server, with /v1 or without; its API key is that of TWOGEAR_API_KEY or OPENAI_API_KEY",
    )  # fmt: skip
    load.add_argument("--streams", type=int, default=8, help="requests at once")
    load.add_argument("--requests", type=int, help="in all; one for each stream if not given")
    load.add_argument("--mode", default="half", help="one of the server's modes, or half: every other request thinks")
    load.add_argument("--prompt-tokens", type=int, default=100, help="of each request, beside the template")
    load.add_argument("--output-tokens", type=int, default=64, help="of each request, exactly")
    load.add_argument("--clients", type=int, default=1, help="processes that share the load; one may be its limit")
    load.add_argument("--model", type=Path, metavar="FOLDER", help="whose tokenizer the server has; the embedded one's")
    report = parser.add_argument_group("report")
    report.add_argument("--results", type=Path, nargs="+", default=[], metavar="FILE", help="newer files to report")


def run(args: argparse.Namespace) -> int:
    """Measures or reports. Raises UsageError."""
    # Each needs modules that the others, and --help, need not wait for.
    if args.what == "load":
        from benchmarks.load import one_load  # noqa: PLC0415

        return one_load.run(args)
    if args.what == "report":
        from benchmarks.load import report  # noqa: PLC0415

        return report.run(args)
    from benchmarks.load import suite  # noqa: PLC0415

    return suite.run(args)
