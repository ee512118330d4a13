"""Coding agents as their users run them, without a terminal: Claude Code and Codex each call a tool and answer.

The model is scripted, for the embedded one has learnt no such tools and its context is too small for their prompts.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chat_templates.format import ChatFormat
from server.modes.profile import Profile
from tests import npm
from tests.clients.scenarios import MODEL
from tests.fake_engine import FakeEngine, Script
from tests.scripted_server import app_of, serving

AGENTS = Path(__file__).parent / "agents"
MODULES = AGENTS / "node_modules"
QUESTION = "What is in lunch.txt?"
CONTENT = "tomato soup"
REPLY = f"It says: {CONTENT}."
THOUGHT = "I look into the file."
LONGEST = 400  # seconds; alone each takes one or two
BASH = ("Bash", {"command": "cat lunch.txt", "description": "Show the file"})
EXEC = ("exec_command", {"cmd": "cat lunch.txt"})

CODEX = re.compile(r"^## Codex\n.*?^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    npm.install(AGENTS)


def script_of(fmt: ChatFormat, tool: tuple[str, dict[str, str]]) -> Script:
    """Thinks, and calls the tool; once a file's content is in the prompt, says it."""
    call = json.dumps({"name": tool[0], "arguments": tool[1]})
    calling = [fmt.tool_call_id, *fmt.encode_text(call), fmt.tool_call_end_id, fmt.end_of_turn_id]
    replying = [*fmt.encode_text(REPLY), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text(THOUGHT), *fmt.close_thinking()]

    def script(prompt: list[int]) -> Iterator[int]:
        said = replying if CONTENT in fmt.decode(prompt) else calling
        return iter(thinking + said if fmt.is_thinking_open(prompt) else said)

    return script


@contextmanager
def server(fmt: ChatFormat, profile: Profile, tool: tuple[str, dict[str, str]]) -> Iterator[str]:
    """Serves a model that calls `tool`; the URL up to and with `/v1`."""
    engine = FakeEngine(script_of(fmt, tool), (fmt.end_of_turn_id,), chunks=(1, 3), max_context=200_000)
    with serving(app_of(engine, profile, fmt)) as url:
        yield url


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs an agent in a folder with the file, with a home of its own and nothing of this environment but PATH."""
    folder, home = tmp_path / "work", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "lunch.txt").write_text(f"{CONTENT}\n")

    def run(*command: str, **environment: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            ["node", *command], cwd=folder, env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run


def claude(run: Run, url: str, model: str = MODEL) -> list[dict[str, Any]]:
    """Its events, with the settings of docs/clients.md."""
    names = ("MODEL", "DEFAULT_HAIKU_MODEL", "DEFAULT_SONNET_MODEL", "DEFAULT_OPUS_MODEL")
    return run(
        str(MODULES / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs"), "-p", QUESTION,
        "--allowedTools", "Bash(cat:*)", "--output-format", "stream-json", "--verbose",
        ANTHROPIC_BASE_URL=url.removesuffix("/v1"), ANTHROPIC_AUTH_TOKEN="none",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", **{f"ANTHROPIC_{name}": model for name in names},
    )  # fmt: skip


def test_claude_code_looks_into_a_file(run: Run, fmt: ChatFormat, profile: Profile) -> None:
    with server(fmt, profile, BASH) as url:
        events = claude(run, url)
    blocks = [
        block for event in events if event["type"] in ("assistant", "user") for block in event["message"]["content"]
    ]
    assert [block["type"] for block in blocks] == ["thinking", "tool_use", "tool_result", "thinking", "text"]
    assert blocks[0]["thinking"] == THOUGHT
    assert (blocks[1]["name"], blocks[1]["input"]) == BASH
    assert blocks[2]["content"] == CONTENT
    result = events[-1]
    assert (result["result"], result["is_error"], result["num_turns"]) == (REPLY, False, 2)
    assert result["usage"]["output_tokens_details"]["thinking_tokens"] > 0


def test_codex_looks_into_a_file(run: Run, fmt: ChatFormat, profile: Profile, tmp_path: Path) -> None:
    home = tmp_path / "codex"
    home.mkdir()
    with server(fmt, profile, EXEC) as url:
        section = CODEX.search((AGENTS.parents[2] / "docs" / "clients.md").read_text())
        assert section is not None
        (home / "config.toml").write_text(section[1].replace("http://127.0.0.1:8000/v1", url))
        events = run(
            str(MODULES / "@openai" / "codex" / "bin" / "codex.js"),
            "exec", "--skip-git-repo-check", "--json", QUESTION, CODEX_HOME=str(home),
        )  # fmt: skip
    done = [event["item"] for event in events if event["type"] == "item.completed"]
    items = [item for item in done if item["type"] != "error"]  # which warns that it does not know the model
    assert [item["type"] for item in items] == ["reasoning", "command_execution", "reasoning", "agent_message"]
    assert items[0]["text"] == THOUGHT
    assert (items[1]["exit_code"], items[1]["aggregated_output"]) == (0, f"{CONTENT}\n")
    assert items[-1]["text"] == REPLY
    assert events[-1]["type"] == "turn.completed"
    assert events[-1]["usage"]["reasoning_output_tokens"] > 0
