"""Every fenced block of README and docs is run, followed or read by a test, or says why it cannot be run."""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import pytest

from server.cli import MODULES, Command, Parser
from tests.doc_blocks import BLOCKS, EXAMPLES, ROOT, Block

FOLLOWED = {
    "docs/add-a-mode.md": "tests/server/test_add_a_mode.py",
    "docs/add-an-api.md": "tests/server/test_add_an_api.py",
    "docs/add-a-family.md": "tests/server/test_add_a_family.py",
    "docs/add-a-model.md": "tests/model_impl/test_add_a_model.py",
    "docs/kubernetes.md": "tests/kubernetes/test_chart.py",
}
"""Pages that a test of their own follows, block by block."""
CONSOLES = [block for block in BLOCKS if block.language == "console"]
COMMANDS = [block for block in BLOCKS if block.language in ("bash", "sh") and block not in EXAMPLES]
OTHERS = {"cp", "curl", "docker", "export", "helm", "kubectl", "set", "lm_eval", "claude", "open-webui", "ray"}
OTHERS |= {"litellm", "smg", "vllm-router"}
"""What is no command of this repository."""
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def is_covered(block: Block) -> bool:
    """Whether a test runs or reads it."""
    if block in EXAMPLES or block.why_not or block.page in FOLLOWED or block.language in ("console", "{toctree}"):
        return True
    if block.language == "{include}":  # pages of the site alone; what they include is held to this too
        return True
    if block.language in ("json", "toml"):
        return True
    return block.language == "" and block.after in EXAMPLES  # what the example before it prints


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.id)
def test_every_block_is_covered(block: Block) -> None:
    assert is_covered(block), "label it, and let a test run it, or put <!-- not run: WHY --> before it"


def test_the_pages_that_tests_follow_are_followed() -> None:
    for page, test in FOLLOWED.items():
        assert Path(page).name in (ROOT / test).read_text()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("json", "toml")], ids=lambda block: block.id)
def test_data_can_be_read(block: Block) -> None:
    (json if block.language == "json" else tomllib).loads(block.code)


@pytest.mark.parametrize("block", CONSOLES, ids=lambda block: block.id)
def test_a_console_shows_what_its_command_prints(block: Block) -> None:
    line, _, shown = block.code.partition("\n")
    assert line.startswith("$ .venv/bin/twogear ")
    command = [str(Path(sys.executable).with_name("twogear")), *shlex.split(line)[2:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, shown), done.stderr


def commands(block: Block) -> list[list[str]]:
    """Its lines as words, without comments; what continues in the next line is one."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.id)
def test_what_a_command_names_exists(block: Block) -> None:
    if "curl" in block.code:
        return
    for words in commands(block):
        program = Path(words[0]).name
        if program == "make":
            assert words[1] in TARGETS
        elif program == "twogear":
            check_arguments(words[1], words[2:])
        elif program == "torchrun":
            name, *given = words[words.index("--") + 2 :]
            check_arguments(name, given)
        elif program == "python":
            assert words[1] == "-m"
            assert find_spec(words[2]) is not None, words[2]
        else:
            assert program in OTHERS, f"{program}: a command of whom?"


def check_arguments(name: str, given: list[str]) -> None:
    """What stands before `--` are arguments that the command takes; raises UsageError."""
    command = cast("Command", import_module(MODULES[name]))
    parser = Parser(prog=f"twogear {name}", formatter_class=argparse.HelpFormatter)
    command.add_arguments(parser)
    own = given[: given.index("--")] if "--" in given else given
    parser.parse_args(own)


def test_a_block_that_is_not_run_has_a_reason_that_can_be_read() -> None:
    assert all(len(block.why_not) > 10 for block in BLOCKS if block.why_not)
