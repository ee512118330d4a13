"""A container's command as the chart writes it, started: what the probes are told, and how it ends."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kubernetes.test_chart import container, filled_in, pods
from tests.kubernetes.tools import install
from tests.ray.deployment import loopback_alone
from tests.real_server import START_SECONDS, TWOGEAR

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="it listens everywhere, and a network of its own needs root"),
    pytest.mark.timeout(1200),
]
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 17 + 25?"}],
    "reasoning_mode": "reasoning", "stream": True, "ignore_eos": True, "max_tokens": 600,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    install()
    with loopback_alone():
        yield


def until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["defaults", "keda"])
def test_it_is_live_then_ready_serves_and_ends_as_the_chart_says(name: str, tmp_path: Path) -> None:
    only, pod = container(name), pods(name)[0]["spec"]
    (port,) = [one["containerPort"] for one in only["ports"]]
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"

    def passes(probe: str) -> bool:
        try:
            return httpx.get(url + only[probe]["httpGet"]["path"]).is_success
        except httpx.TransportError:
            return False

    with log.open("wb") as file:
        process = subprocess.Popen([TWOGEAR, *filled_in(only["args"])], stderr=file)
    try:
        until(lambda: passes("startupProbe"), "it is live")
        assert not passes("readinessProbe")
        assert passes("livenessProbe")
        until(lambda: passes("readinessProbe"), "it is ready")
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=ASKED) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            until(lambda: not passes("readinessProbe"), "it takes no more")
            assert passes("livenessProbe")
            assert [line for line in lines if line][-1] == "data: [DONE]"
        grace = pod["terminationGracePeriodSeconds"] - only["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert process.wait(grace) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
