"""The pictures of the page in README and docs: `python -m tests.page.screenshots` takes them of a real server.

That of Open WebUI is taken too where `make test-open-webui` has installed it.
"""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page

from tests.page import open_webui
from tests.page.chromium import SLOW_MS, chromium
from tests.real_server import RealServer

FOLDER = Path(__file__).parents[2] / "docs" / "images"
QUESTION = "What is 303 + 948 - 105?"
LONG_LIST = {"type": "array", "items": {"enum": [7]}, "minItems": 5000}
"""A schema whose answer goes on while the live view is looked at."""
SECONDS_OF_LOAD = 12
DESKTOP, PHONE = (1180, 760), (390, 844)


def open_page(browser: Browser, url: str, size: tuple[int, int], colours: str) -> Page:
    """The page, ready to be asked."""
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours)  # type: ignore[arg-type]
    context.set_default_timeout(SLOW_MS)
    page = context.new_page()
    page.goto(url)
    page.get_by_label("reasoning").wait_for(state="attached")
    return page


def ask(page: Page, question: str, button: str) -> None:
    """Sends a question and waits until all of its answers have ended."""
    asked = page.get_by_role("button", name="Edit", exact=True)
    before = asked.count()
    page.get_by_label("Message", exact=True).fill(question)
    page.get_by_role("button", name=button, exact=True).click()
    asked.nth(before).wait_for()  # Stop may be gone before it is seen
    page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")


@contextmanager
def load(url: str) -> Iterator[None]:
    """Two long answers meanwhile, so that the live view has something to show."""
    ended = threading.Event()

    def ask_on() -> None:
        schema = {"type": "json_schema", "json_schema": {"name": "list", "schema": LONG_LIST}}
        body = {
            "model": "twogear-tiny",
            "messages": [{"role": "user", "content": "Count."}],
            "response_format": schema,
            "stream": True,
        }
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**body, "max_tokens": 20_000}) as stream:
            for _ in stream.iter_lines():
                if ended.is_set():
                    return

    threads = [threading.Thread(target=ask_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield
    ended.set()
    for thread in threads:
        thread.join()


def take(browser: Browser, url: str) -> None:
    """All of them."""
    page = open_page(browser, url, DESKTOP, "light")
    page.screenshot(path=FOLDER / "page-welcome.png")
    ask(page, QUESTION, "All gears")
    page.locator("details.thought").last.locator("summary").click()
    page.screenshot(path=FOLDER / "page.png")
    page.get_by_role("button", name="Server").click()
    page.get_by_text("KV cache pages").wait_for()
    with load(url):
        page.wait_for_timeout(1000 * SECONDS_OF_LOAD)
        page.screenshot(path=FOLDER / "page-server.png")
    dark = open_page(browser, url, DESKTOP, "dark")
    dark.get_by_role("button", name="Settings").click()
    dark.get_by_label("Token probabilities").check()
    ask(dark, QUESTION, "All gears")
    dark.screenshot(path=FOLDER / "page-dark.png")
    phone = open_page(browser, url, PHONE, "light")
    phone.get_by_role("group").get_by_text("reasoning", exact=True).click()
    ask(phone, QUESTION, "Send")
    phone.screenshot(path=FOLDER / "page-phone.png")


def take_open_webui(browser: Browser, url: str) -> None:
    """A thought, unfolded, and its answer."""
    with tempfile.TemporaryDirectory() as data, open_webui.open_webui(f"{url}/v1", Path(data)) as address:
        width, height = DESKTOP
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(SLOW_MS)
        open_webui.begin(page, address, "twogear-tiny:reasoning")
        open_webui.ask(page, QUESTION)
        page.get_by_role("button", name="Thought").click()
        page.get_by_text("1146", exact=True).wait_for()
        open_webui.stop(page).wait_for(state="hidden")
        page.screenshot(path=FOLDER / "open-webui.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with RealServer() as server, chromium() as browser:
        take(browser, server.url)
        if open_webui.COMMAND.exists():
            take_open_webui(browser, server.url)
