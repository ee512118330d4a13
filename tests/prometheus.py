"""A real Prometheus that scrapes one server, and what it is asked: Debian's package `prometheus` has both programs."""

import re
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

SCRAPE_SECONDS = 0.25
START_SECONDS = 240


def program(name: str) -> str:
    """Its path; skips the test where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian's package prometheus)")
    return found


class Prometheus:
    """Scrapes `/metrics` of the server at `url` from `with` to its end; files are kept in `folder`."""

    def __init__(self, url: str, folder: Path) -> None:
        config = folder / "prometheus.yaml"
        config.write_text(
            f"global: {{scrape_interval: {round(1000 * SCRAPE_SECONDS)}ms}}\n"
            f"scrape_configs: [{{job_name: twogear, static_configs: [{{targets: ['{url.partition('//')[2]}']}}]}}]\n"
        )
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stderr=log,
                stdout=log,
            )
        self._url = ""

    def __enter__(self) -> Self:
        """Returns once it scrapes, which takes five seconds: so often it looks at what there is to scrape."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            found = re.search(r"Listening on\S* address=(\S+)", self._log.read_text())
            if found:
                self._url = f"http://{found[1]}"
                if httpx.get(f"{self._url}/-/ready").is_success and self.query("up == 1"):
                    return self
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"Prometheus did not start, or reached no server:\n{self._log.read_text()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(240)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What the expression gives now."""
        answer = httpx.get(f"{self._url}/api/v1/query", params={"query": expression}, timeout=240).json()
        assert answer["status"] == "success", (expression, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result
