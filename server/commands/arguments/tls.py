"""The flags of `twogear serve` for TLS, named as uvicorn names them."""

import argparse
from pathlib import Path

from server.cli_errors import UsageError
from server.settings import Settings

DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults come from Settings."""
    group = parser.add_argument_group("TLS, as uvicorn has it")
    group.add_argument("--ssl-keyfile", type=Path, metavar="FILE", help="the certificate's key, as PEM")
    group.add_argument("--ssl-certfile", type=Path, metavar="FILE", help="the certificate, as PEM")
    group.add_argument("--ssl-keyfile-password", metavar="TEXT", help="of an encrypted key")
    group.add_argument("--ssl-ca-certs", type=Path, metavar="FILE", help="authorities of clients' certificates, as PEM")
    group.add_argument(
        "--ssl-cert-reqs",
        type=int,
        choices=(0, 1, 2),
        default=DEFAULTS.ssl_cert_reqs,
        help="whether clients need a certificate: 0 no, 1 they may have one, 2 yes",
    )
    group.add_argument("--ssl-ciphers", metavar="TEXT", help="in OpenSSL's notation")


def check(args: argparse.Namespace) -> None:
    """Raises UsageError for half of a certificate."""
    if (args.ssl_keyfile is None) != (args.ssl_certfile is None):
        raise UsageError("TLS needs both --ssl-keyfile and --ssl-certfile")
