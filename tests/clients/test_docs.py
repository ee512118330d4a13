"""The examples of README and docs run unchanged against the real server, and print what the pages show."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.doc_blocks import ASKS, BLOCKS, EXAMPLES, Block

pytestmark = pytest.mark.engine

SHOWN = [block for block in BLOCKS if block.after in EXAMPLES and block.language in ("", "json") and not block.comment]
"""What an example before it prints."""
VARIES = re.compile(
    r"""(?<="id": )"[^"]*"|(?<="created": )\d+"""  # of an answer in JSON
    r"""|\d[\d.]* m?s\b|\d[\d,]*(?= tokens/s)|^\d+(?=\?$)"""  # of `twogear chat`: times, rates, the model's first guess
)
"""Values that are new each time, or on another machine."""


def run(block: Block, url: str, request: pytest.FixtureRequest) -> str:
    """What it prints; its address is the server's."""
    own = str(Path(sys.executable).with_name("twogear"))
    code = block.code.replace(ASKS, url.removesuffix("/v1")).replace(".venv/bin/twogear", own)
    if block.language == "js":
        return str(request.getfixturevalue("node")("--input-type=module", "-e", code))
    command = ["bash", "-c", code] if block.language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.id)
def test_an_example_runs(request: pytest.FixtureRequest, url: str, block: Block) -> None:
    printed = run(block, url, request)
    assert printed.strip()
    for shown in (shown for shown in SHOWN if shown.after == block):
        assert comparable(shown.code, block) == comparable(printed, block)


def comparable(text: str, asked: Block) -> list[str]:
    """Its lines without what is new each time. What is drawn with a temperature is left out: only the keys stay."""
    lines = [VARIES.sub("…", line).rstrip(",") for line in text.strip().splitlines()]
    drawn = '"reasoning_mode": "reasoning"' in asked.code
    return [line.partition('": ')[0].strip() if drawn else line.strip() for line in lines]


def shape(value: Any) -> Any:
    """A JSON value with types in the place of its values."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    return [shape(one) for one in value] if isinstance(value, list) else type(value).__name__


def test_the_whole_answer_in_the_readme_has_all_that_an_answer_has(url: str) -> None:
    (shown,) = [b for b in BLOCKS if b.page == "README.md" and '"object": "chat.completion"' in b.code]
    asked = {"messages": [{"role": "user", "content": "What is 303 + 948 - 105?"}], "reasoning_mode": "reasoning"}
    answer = httpx.post(f"{url}/chat/completions", json=asked, timeout=240).json()
    assert shape(answer) == shape(json.loads(shown.code))
