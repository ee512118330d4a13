"""Open WebUI in front of a server, from the environment that `make test-open-webui` makes for it.

It is set up as docs tell people to: by `examples/open_webui.env`, and by what docs/open-webui.md says of its own tools
and of no network.
"""

import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from playwright.sync_api import Locator, Page

from tests.doc_blocks import BLOCKS, ROOT

COMMAND = ROOT / ".venv-open-webui" / "bin" / "open-webui"
SETTINGS = ROOT / "examples" / "open_webui.env"
START_SECONDS = 600
"""On a busy machine, the first time, when Python compiles all of it; alone it takes a fiftieth."""
ASSIGNED = re.compile(r"^(?:export )?([A-Z_]+)=(.*)$", re.MULTILINE)


def settings(url: str, data: Path) -> dict[str, str]:
    """The environment of an Open WebUI for one person, in front of the server at `url` (up to and with `/v1`)."""
    exports = "".join(b.code for b in BLOCKS if b.page == "docs/open-webui.md" and b.code.startswith("export "))
    told = {name: "".join(shlex.split(value)) for name, value in ASSIGNED.findall(SETTINGS.read_text() + exports)}
    own = {"OPENAI_API_BASE_URL": url, "DATA_DIR": str(data), "WEBUI_AUTH": "False", "WEBUI_SECRET_KEY": "of a test"}
    return {**os.environ, **told, **own}


@contextmanager
def open_webui(url: str, data: Path) -> Iterator[str]:
    """Runs it meanwhile, with its database and its log in `data`; its address."""
    log, port = data / "log", free_port()
    command: list[str | Path] = [COMMAND, "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (
        log.open("w") as writing,
        subprocess.Popen(command, env=settings(url, data), cwd=data, stdout=writing, stderr=writing) as process,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, process, log)
            yield address
        finally:
            process.terminate()


def free_port() -> int:
    """One that nobody has now. Open WebUI takes no bound socket, and does not say which port it found."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers; raises RuntimeError where it ended or takes too long."""
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with suppress(httpx.TransportError):
            if httpx.get(f"{address}/health").is_success:
                return
        time.sleep(0.2)
    raise RuntimeError(f"Open WebUI did not start: {log.read_text()[-2000:]}")


def begin(page: Page, address: str, model: str) -> None:
    """A new conversation with this model."""
    news = page.get_by_role("button", name="Okay, Let's Go!")
    page.add_locator_handler(news, news.click)
    page.goto(f"{address}/?models={model}")
    message(page).wait_for()


def message(page: Page) -> Locator:
    """Where one types."""
    return page.locator("#chat-input")


def ask(page: Page, text: str) -> None:
    """Sends a message; does not wait for the answer."""
    message(page).click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def stop(page: Page) -> Locator:
    """The button that ends the answer; there while one comes."""
    return page.get_by_role("button", name="Stop", exact=True)
