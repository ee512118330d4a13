"""The pictures of the page in README and docs: `python -m tests.page.screenshots` takes them of a real server."""

from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.page.chromium import SLOW_MS, chromium
from tests.real_server import RealServer

FOLDER = Path(__file__).parents[2] / "docs" / "images"
QUESTION = "What is 303 + 948 - 105?"
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


def take(browser: Browser, url: str) -> None:
    """All of them."""
    page = open_page(browser, url, DESKTOP, "light")
    ask(page, QUESTION, "All gears")
    page.locator("details.thought").last.locator("summary").click()
    page.screenshot(path=FOLDER / "page.png")
    page.get_by_role("button", name="Server").click()
    page.get_by_text("KV cache pages").wait_for()
    ask(page, "What is 17 * 23?", "All gears")
    page.wait_for_timeout(2000)
    page.screenshot(path=FOLDER / "page-server.png")
    dark = open_page(browser, url, DESKTOP, "dark")
    dark.get_by_role("button", name="Settings").click()
    dark.get_by_label("Token probabilities").check()
    ask(dark, QUESTION, "All gears")
    dark.screenshot(path=FOLDER / "page-dark.png")
    phone = open_page(browser, url, PHONE, "light")
    phone.get_by_text("reasoning", exact=True).click()
    ask(phone, QUESTION, "Send")
    phone.screenshot(path=FOLDER / "page-phone.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with RealServer() as server, chromium() as browser:
        take(browser, server.url)
