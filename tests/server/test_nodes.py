"""One engine over two machines, `--nnodes 2`: two servers here, each with a worker of its own, over loopback."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server import cli
from tests.real_server import START_SECONDS, TWOGEAR, RealServer

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
ASKED: list[dict[str, Any]] = [
    {"messages": SUM},
    {"messages": SUM, "reasoning_mode": "reasoning", "temperature": 0, "max_tokens": 150, "seed": 1},
]
SPREAD = {
    "tensor": ["--tensor-parallel-size", "2"],
    "pipeline": ["--pipeline-parallel-size", "2"],
}


class Follower:
    """`twogear serve` as the second machine; runs from `with` to its end."""

    def __init__(self, options: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen([TWOGEAR, "serve", "--", *options], stderr=file)

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        return self._log.read_text()

    def engine(self) -> psutil.Process:
        (engine,) = [one for one in psutil.Process(self.process.pid).children() if "engine" in one.cmdline()]
        return engine


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.1)


@pytest.fixture
def alone() -> Iterator[None]:
    """Processes here know each other by loopback, whatever other addresses this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_HOST_IP", "127.0.0.1")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        yield


def said(url: str, fields: dict[str, Any]) -> Any:
    response = httpx.post(f"{url}/v1/chat/completions", json=fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


@pytest.mark.engine
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("spread", SPREAD)
def test_two_machines_answer_as_one(spread: str, alone: None, tmp_path: Path) -> None:
    with RealServer() as one:
        expected = [said(one.url, fields) for fields in ASKED]
    options = [*SPREAD[spread], "--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    with ExitStack() as stack:
        other = stack.enter_context(Follower([*options, "--node-rank", "1"], tmp_path / "log"))
        first = stack.enter_context(RealServer("--", *options, "--node-rank", "0"))
        assert "TwogearExaone4ForCausalLM" in "".join(first.output)
        until(lambda: "Ready after" in other.output, "it says that it is ready")
        assert [said(first.url, fields) for fields in ASKED] == expected
        drawn = said(first.url, {**ASKED[1], "temperature": 1.0, "seed": None})
        assert drawn[0]["finish_reason"] in ("stop", "length")
        if spread == "tensor":
            come_back(first, other, expected)
        assert first.stop(signal.SIGTERM) == 0
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(60) == 0


def come_back(first: RealServer, other: Follower, expected: list[Any]) -> None:
    """Either machine's engine is killed; both find together again."""
    other.engine().kill()
    until(lambda: httpx.post(f"{first.url}/v1/chat/completions", json=ASKED[0]).status_code == 503, "the loss shows")
    first.wait_until(200)
    assert [said(first.url, fields) for fields in ASKED] == expected
    os.kill(first.engine_pid, signal.SIGKILL)
    first.wait_until(503)
    first.wait_until(200)
    assert [said(first.url, fields) for fields in ASKED] == expected
    assert "has ended what it ran" in other.output


def test_several_engines_of_several_machines_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["serve", "--port", "0", "--data-parallel-size", "2", "--", "--nnodes", "2", "--tensor-parallel-size", "2"]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--nnodes" in line
