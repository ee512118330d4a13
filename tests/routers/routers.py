"""Routers of others in front of servers, started as docs/scale.md says: `make test-routers` installs two of them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.doc_blocks import ROOT
from tests.page.open_webui import free_port

FOLDER = ROOT / ".venv-routers" / "bin"
START_SECONDS = 280
"""On a busy machine; alone they take one to ten."""
KEY = "sk-of-a-test"
LITELLM = """
model_list:
{models}
router_settings: {{routing_strategy: least-busy, num_retries: 2, allowed_fails: 1, cooldown_time: 5}}
"""


def command(name: str, port: int, urls: Sequence[str], folder: Path) -> list[str | Path]:
    """What starts a router of this name in front of `urls`."""
    place = ["--host", "127.0.0.1", "--port", str(port)]
    if name == "litellm":
        config = folder / "litellm.yaml"
        entry = "  - {{model_name: twogear-tiny, litellm_params: {{{}, api_base: {}/v1, api_key: none}}}}"
        config.write_text(
            LITELLM.format(models="\n".join(entry.format("model: openai/twogear-tiny", url) for url in urls))
        )
        return [Path(sys.executable).parent / "litellm", "--config", config, *place]
    if name == "smg":
        return [FOLDER / "smg", "launch", *place, "--worker-urls", *urls, "--policy", "cache_aware",
                "--prometheus-port", str(free_port())]  # fmt: skip
    return [FOLDER / "vllm-router", *place, "--worker-urls", *urls, "--policy", "consistent_hash",
            "--worker-startup-check-interval", "1", "--health-check-interval-secs", "2",
            "--prometheus-port", str(free_port())]  # fmt: skip


@contextmanager
def router(name: str, urls: Sequence[str], folder: Path) -> Iterator[httpx.Client]:
    """Runs it meanwhile, with its log in `folder`; a client of it, once it answers.

    Raises RuntimeError where it ends, and TimeoutError.
    """
    log, port = folder / "log", free_port()
    headers = {"Authorization": f"Bearer {KEY}"} if name == "litellm" else {}
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=240)
    with (
        log.open("w") as writing,
        client,
        subprocess.Popen(
            command(name, port, urls, folder),
            env={**os.environ, "LITELLM_MASTER_KEY": KEY},
            cwd=folder,
            stdout=writing,
            stderr=writing,
        ) as process,
    ):
        try:
            _await(client, process, log)
            yield client
        finally:
            process.kill()


def _await(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            if client.get("/v1/models").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"it does not answer:\n{log.read_text()[-2000:]}")


def running(urls: Sequence[str]) -> float:
    """How many requests the servers run, by their metrics, under the name that routers read."""
    texts = [httpx.get(url + "/metrics").text for url in urls]
    gauge = re.compile(r"^vllm:num_requests_running\{.*\} (\S+)$", re.MULTILINE)
    return sum(float(number) for text in texts for number in gauge.findall(text))


def until(urls: Sequence[str], wanted: float) -> None:
    """Waits until the servers run so many requests. Raises TimeoutError."""
    end = time.monotonic() + START_SECONDS
    while (now := running(urls)) != wanted:
        if time.monotonic() > end:
            raise TimeoutError(f"{now} run, not {wanted}")
        time.sleep(0.2)
