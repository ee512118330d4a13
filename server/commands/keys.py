"""`twogear keys`: makes an API key and its lines for `twogear serve --api-keys FILE`, and checks such a file."""

import argparse
import os
import re
import sys
from pathlib import Path

from server.access.keys import NAME, hash_of, load_keys, new_secret
from server.cli_errors import UsageError

HELP = "make API keys for a server, or check a file of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do."""
    parser.usage = "twogear keys new NAME [--file FILE] | twogear keys check FILE"
    parser.epilog = (
        "new prints the key, which is kept nowhere, and the lines for the file of keys; with --file it adds the lines "
        "to FILE and prints the key alone."
    )
    parser.add_argument("action", choices=("new", "check"), help="what to do")
    parser.add_argument("subject", metavar="NAME|FILE", help="the new key's name, or the file to check")
    parser.add_argument("--file", type=Path, help="the file of keys that a new one is added to")


def run(args: argparse.Namespace) -> int:
    """Prints what was made or found. Raises UsageError."""
    if args.action == "check":
        names = [key.name for key in load_keys(Path(args.subject)).keys]
        print(f"{args.subject} has {len(names)} {'key' if len(names) == 1 else 'keys'}: {', '.join(names)}")
        return 0
    if not re.fullmatch(NAME, args.subject):
        raise UsageError(f"{args.subject!r} is no name of a key: up to 64 letters, digits and . _ - @ are")
    secret = new_secret()
    lines = f'[[keys]]\nname = "{args.subject}"\nhash = "{hash_of(secret.encode())}"\n'
    if args.file is None:
        print(f"The key, which is shown this once:\n\n{secret}\n\nIts lines in the file of keys:\n\n{lines}", end="")
    else:
        _add(args.file, args.subject, lines)
        print(secret)
    return 0


def _add(file: Path, name: str, lines: str) -> None:
    """Adds a key to a file, which only its owner may read if it is new. Raises UsageError."""
    had = ""
    if file.exists():
        if name in [key.name for key in load_keys(file).keys]:
            raise UsageError(f"{file} has a key {name} already")
        had = file.read_text(encoding="utf-8").rstrip("\n") + "\n\n"
    beside = file.with_name(f".{file.name}.new")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as made:
            made.write(had + lines)
        if file.exists():
            beside.chmod(file.stat().st_mode)
        beside.replace(file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error
    print(f"added {name} to {file}; SIGHUP has a running server read it", file=sys.stderr)
