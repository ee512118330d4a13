"""The examples of README.md and docs/clients.md run unchanged against the real server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "clients.md"]
BLOCK = re.compile(r"^```(python|bash|js)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = [section.partition("\n") for page in PAGES for section in page.read_text().split("\n## ")]
EXAMPLES = [
    pytest.param(language, code, id=f"{title.lstrip('# ')}-{number}")
    for title, _, text in SECTIONS
    for number, (language, code) in enumerate(BLOCK.findall(text))
    if title != "lm-eval"  # its task is on the network; test_lm_eval.py runs such a command
]


@pytest.mark.parametrize(("language", "code"), EXAMPLES)
def test_an_example_runs(request: pytest.FixtureRequest, url: str, language: str, code: str) -> None:
    assert "http://127.0.0.1:8000" in code
    code = code.replace("http://127.0.0.1:8000", url.removesuffix("/v1"))
    if language == "js":
        assert request.getfixturevalue("node")("--input-type=module", "-e", code).strip()
        return
    command = ["bash", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
