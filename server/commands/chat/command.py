"""The `twogear chat` command: finds the server, and begins."""

import argparse
import asyncio
import sys

import httpx
from rich.console import Console

from server.access.keys import client_headers
from server.cli_errors import UsageError
from server.commands.chat.commands import words_of
from server.commands.chat.conversation import Model
from server.commands.chat.display import Display
from server.commands.chat.line_editor import LineEditor, PipeReader, Reader, open_history, state_folder, unechoed
from server.commands.chat.remote import KeyRefusedError, NotTwogearError, Remote, RemoteError
from server.commands.chat.session import Session
from server.settings import Settings
from server.urls import server_url

HELP = "talk to a running server in the terminal"
DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the server is and how to begin."""
    default = f"http://{DEFAULTS.host}:{DEFAULTS.port}"
    parser.add_argument("--url", type=server_url, default=default, help="where the server is, with /v1 or without")
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="the key to send; other users of the machine can see it in the list of processes, which is why the "
        "environment's TWOGEAR_API_KEY or OPENAI_API_KEY is better",
    )
    parser.add_argument("--mode", help="the mode to begin in, one of the server's; left out, the server's default")


def run(args: argparse.Namespace) -> int:
    """Talks until the input ends. Raises UsageError when no server can be talked to."""
    headers = client_headers(key=args.api_key)
    try:
        asyncio.run(_talk(args.url, headers, args.mode))
    except httpx.InvalidURL as error:
        raise UsageError(f"--url {args.url} is no address: {error}") from error
    return 0


async def _talk(url: str, headers: dict[str, str], mode: str | None) -> None:
    async with Remote(url, headers) as remote:
        display = Display(Console(highlight=False))
        models = await _models(remote)
        _check_mode(mode, models[0])
        is_person = sys.stdin.isatty() and display.console.is_terminal
        session = Session(remote, display, models, mode or models[0].default_mode, is_person=is_person)
        modes = "|".join(one.name for one in session.model.modes)
        display.note(f"{session.model.name} in {session.mode.name} mode; /mode {modes} switches, /help tells the rest.")
        reader: Reader = PipeReader()
        if is_person:
            history, problem = open_history(state_folder())
            if problem:
                display.problem(problem)
            reader = LineEditor(history, lambda: words_of(session))
        with unechoed():
            await session.talk(reader)


async def _models(remote: Remote) -> list[Model]:
    try:
        return await remote.models()
    except KeyRefusedError as error:
        hint = "--api-key, or TWOGEAR_API_KEY in the environment, is what it gets"
        raise UsageError(f"{remote.url} wants another API key ({error} {hint})") from error
    except NotTwogearError as error:
        raise UsageError(f"{remote.url}: {error}") from error
    except RemoteError as error:
        if error.later is None:
            raise UsageError(f"{remote.url}: {error}") from error
        raise UsageError(f"no server answers at {remote.url}; start one with twogear serve, or give --url") from error


def _check_mode(mode: str | None, model: Model) -> None:
    if mode is not None and model.mode(mode) is None:
        raise UsageError(f"--mode {mode}: this server has {', '.join(one.name for one in model.modes)}")
