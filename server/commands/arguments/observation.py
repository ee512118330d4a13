"""The flags of `twogear serve` that show its requests: a log of lines, and traces."""

import argparse

from server.cli_errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing is written or sent by default."""
    group = parser.add_argument_group("what is seen of requests")
    group.add_argument(
        "--request-log", metavar="FILE", help="write one JSON line for each request, without its text; - is stderr"
    )
    group.add_argument(
        "--log-text", action="store_true", help="put what is asked and answered into the lines of --request-log"
    )
    group.add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="send OpenTelemetry traces there, as http://127.0.0.1:4318/v1/traces; needs twogear[otel]",
    )


def check(args: argparse.Namespace) -> None:
    """Raises UsageError for text without a log to write it to."""
    if args.log_text and args.request_log is None:
        raise UsageError("--log-text needs --request-log: it says where the lines go")
