"""The `twogear` command: finds the subcommand's module, parses its arguments, turns mistakes into one line.

Each module has `HELP`, `add_arguments(parser)` and `run(args)`, and is imported only when its command is called (or
listed); what a command takes after `--` goes to `args.engine_options`, if it has that default.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn, Protocol, cast

from server.cli_errors import UsageError

MODULES = {
    "serve": "server.commands.serve",
    "chat": "server.commands.chat.command",
    "keys": "server.commands.keys",
    "plan": "server.commands.plan",
    "eval": "evals.command",
    "calibrate": "evals.calibrate",
    "bench": "benchmarks.bench_command",
    "train": "training.command",
}
INTERRUPTED = 130  # what shells report after Ctrl-C


class Command(Protocol):
    """What a command's module has."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Runs the command; returns the exit code. Raises UsageError."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message} (see {self.prog} --help)")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, False) else action.help


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 after a mistake of the user's, 130 after Ctrl-C."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except UsageError as error:
        print(f"twogear: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"twogear {version('twogear')}")
        return 0
    if name not in MODULES:
        raise UsageError(f"there is no command {name!r}{_hint(name, MODULES)}; the commands are {', '.join(MODULES)}")
    command = cast("Command", import_module(MODULES[name]))
    return command.run(_parse(name, command, argv[1:]))


def _overview() -> str:
    lines = [f"  {name:<10}{cast('Command', import_module(module)).HELP}" for name, module in MODULES.items()]
    return "\n".join(["usage: twogear COMMAND [options]", "", *lines, "", "twogear COMMAND --help says more of each."])


def _parse(name: str, command: Command, argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog=f"twogear {name}",
        description=command.HELP,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    dashes = argv.index("--") if "--" in argv else len(argv)
    args, unknown = parser.parse_known_args(argv[:dashes])
    for option in unknown:
        known = [known for action in parser._actions for known in action.option_strings]
        hint = _hint(option, known)
        if option.startswith("--") and parser.get_default("engine_options") is not None:
            hint += f"; options of the engine stand after --, as in {parser.prog} -- {option}"
        raise UsageError(f"unknown argument {option}{hint} (see {parser.prog} --help)")
    if argv[dashes:]:
        if parser.get_default("engine_options") is None:
            raise UsageError(f"{parser.prog} takes nothing after --")
        args.engine_options = argv[dashes + 1 :]
    return args


def _hint(word: str, known: Sequence[str] | dict[str, str]) -> str:
    close = get_close_matches(word.partition("=")[0], list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""
