"""What a reader of the page does, in words."""

from playwright.sync_api import Locator, Page, expect


def ask(page: Page, text: str, *, mode: str = "", button: str = "Send") -> None:
    """Sends a message; does not wait for the answer."""
    if mode:
        page.locator(".composer").get_by_text(mode, exact=True).click()
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name=button, exact=True).click()


def settle(page: Page) -> None:
    """Waits until all answers have ended."""
    expect(page.locator(".turn-actions").last).to_be_visible()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()


def answered(page: Page, text: str, *, mode: str = "", button: str = "Send") -> None:
    """Sends a message and waits for all answers."""
    ask(page, text, mode=mode, button=button)
    expect(page.locator(".user p").last).to_have_text(text)
    settle(page)


def runs(page: Page) -> Locator:
    """The answers on view."""
    return page.locator(".run")
