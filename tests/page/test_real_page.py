"""The page with the embedded checkpoint behind it: both gears, tools, JSON, probabilities, the live view."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.page.chromium import needs_chromium
from tests.page.doing import answered, runs, settle
from tests.real_server import RealServer

pytestmark = [needs_chromium, pytest.mark.engine, pytest.mark.timeout(600)]

QUESTION = "What is 303 + 948 - 105?"


@pytest.fixture
def page(new_page: Callable[..., Page], real_server: RealServer) -> Page:
    page = new_page(real_server.url)
    page.get_by_label("reasoning").wait_for(state="attached")
    return page


def test_both_gears_side_by_side_and_then_the_next_turn(page: Page) -> None:
    answered(page, QUESTION, button="All gears")
    standard, reasoning = runs(page).all()
    expect(standard.locator(".markdown")).to_have_text("1210")
    expect(standard.locator(".numbers")).to_contain_text("5 tokens")
    expect(reasoning.locator(".markdown")).to_have_text("1146")
    expect(reasoning.locator(".numbers")).to_contain_text("thinking, 7 answer")
    reasoning.get_by_label("go on from this").check()
    answered(page, "What is 38 + 45?", mode="reasoning")
    expect(runs(page).last.locator(".markdown")).to_have_text("83")
    page.get_by_role("button", name="Server").click()
    for group in ("sliding", "global"):
        expect(page.locator(".drawer figcaption", has_text=group)).to_contain_text("cached")


def test_a_tool_is_called_and_its_result_typed_in(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Example of Tools").click()
    answered(page, QUESTION, mode="standard")
    expect(runs(page).locator(".call")).to_contain_text("303 + 948 - 105")
    page.get_by_label("What calculator returns").fill("1146")
    page.get_by_role("button", name="Send the result").click()
    expect(runs(page)).to_have_count(2)
    settle(page)
    expect(runs(page).last.locator(".markdown")).to_contain_text("1146")


def test_an_answer_under_a_schema_with_probabilities(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Example of JSON schema").click()
    page.get_by_label("Token probabilities").check()
    answered(page, QUESTION, mode="reasoning")
    expect(runs(page).locator(".tokens")).to_contain_text('"answer"')
    tokens = runs(page).locator(".token")
    tokens.last.click()
    expect(runs(page).locator(".alternatives")).to_contain_text("%")
