"""The programs in `examples/` run unchanged against the real server, and say what they are there to show."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from server.listeners import bind
from tests.clients.scenarios import REPLY
from tests.setup.test_house import ROOT

pytestmark = pytest.mark.engine
EXAMPLES = ROOT / "examples"
MASTER_KEY = f"sk-{secrets.token_hex(24)}"
START_SECONDS = 240
"""Of LiteLLM's proxy on a busy machine; alone it takes ten."""


@pytest.fixture
def environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says where the server is, for what is run from here."""
    monkeypatch.setenv("TWOGEAR_URL", url.removesuffix("/v1"))
    monkeypatch.setenv("TWOGEAR_API_BASE", url)
    monkeypatch.setenv("TWOGEAR_API_KEY", "none")


def run(*command: str | Path, stdin: str = "") -> str:
    """What an example prints."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("openai_chat.py", ["# standard", "# reasoning", "303+948", " of them thinking)"]),
        ("openai_responses.py", ["thought:", "answer: 83", "then: 3", "name='Paul' age=27 city='Lisbon'"]),
        ("anthropic_messages.py", ["\n83\n(", "'name': 'get_weather'", "21 degrees"]),
        ("langchain_chain.py", ["standard ['83', '15']", "reasoning [", "name='Paul' age=27 city='Lisbon'"]),
        ("agent_with_tools.py", ["thinks:", "calls:", "sunny", REPLY]),
        ("load_test.py", ["twogear-tiny:standard: 64 answered, 0 failed", "twogear-tiny:reasoning: 64 answered"]),
    ],
)
def test_python(environment: None, name: str, told: list[str]) -> None:
    out = run(sys.executable, EXAMPLES / name)
    assert [text for text in told if text not in out] == []


def test_curl(environment: None) -> None:
    out = run(EXAMPLES / "curl.sh")
    assert '"id":"twogear-tiny:reasoning"' in out
    assert '"reasoning_finish_reason":"budget"' in out
    assert "data: [DONE]" in out
    assert "Lisbon" in out


@pytest.mark.parametrize(
    ("name", "told"),
    [("openai_chat.mjs", "# reasoning"), ("openai_responses.mjs", "thought:")],
)
def test_javascript(environment: None, node: Callable[..., str], name: str, told: str) -> None:
    """Run from the folder that has the packages, where imports are looked for."""
    assert told in node("--input-type=module", "-e", (EXAMPLES / name).read_text())


def test_structured_documents(environment: None, tmp_path: Path) -> None:
    out = run(sys.executable, EXAMPLES / "structured_documents.py", stdin="Paul lives in Lisbon and is 27.\n" * 2)
    assert [json.loads(line) for line in out.splitlines()] == [{"name": "Paul", "age": 27, "city": "Lisbon"}] * 2
    file = tmp_path / "letter.txt"
    file.write_text("Paul lives in Lisbon and is 27.")
    assert "Paul" in run(sys.executable, EXAMPLES / "structured_documents.py", file)


def test_a_batch_goes_on_where_it_was_interrupted(environment: None, tmp_path: Path) -> None:
    target = tmp_path / "results.jsonl"
    command: list[str | Path] = [sys.executable, EXAMPLES / "batch_file.py", EXAMPLES / "batch_requests.jsonl", target]
    run(*command)
    results = {line["custom_id"]: line["response"] for line in map(json.loads, target.read_text().splitlines())}
    assert {name: result["status_code"] for name, result in results.items()} == {
        "sum-1": 200, "sum-2": 200, "bad": 400, "answer-1": 200
    }  # fmt: skip
    kept = target.read_text().splitlines(keepends=True)[:2]
    target.write_text("".join(kept))
    assert run(*command).count("done") == 2
    assert len(target.read_text().splitlines()) == 4


@pytest.fixture
def proxy(environment: None, tmp_path: Path) -> Iterator[str]:
    """LiteLLM's proxy with the example's settings: its address."""
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    config = ["--config", str(EXAMPLES / "litellm_proxy.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "proxy.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "litellm"), *config], cwd=tmp_path, stdout=output, stderr=output,
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": MASTER_KEY},
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        transport = httpx.HTTPTransport(retries=0)
        with httpx.Client(transport=transport) as http:
            for _ in range(START_SECONDS * 2):
                assert process.poll() is None, log.read_text()
                try:
                    http.get(f"{address}/health/liveliness")
                    break
                except httpx.TransportError:
                    time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def test_litellms_proxy(proxy: str) -> None:
    for model, thinks in (("fast", False), ("thinking", True)):
        asked = {"model": model, "messages": [{"role": "user", "content": "What is 38 + 45?"}]}
        headers = {"Authorization": f"Bearer {MASTER_KEY}"}
        response = httpx.post(f"{proxy}/v1/chat/completions", json=asked, headers=headers, timeout=120)
        assert response.status_code == 200, response.text
        message = response.json()["choices"][0]["message"]
        assert message["content"]
        assert bool(message.get("reasoning_content")) == thinks
