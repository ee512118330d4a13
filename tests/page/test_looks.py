"""For everybody: axe finds nothing serious, a phone has no sideways scrolling, code and live view are there."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.fake_engine import FakeEngine
from tests.page.conftest import LONG, Model
from tests.page.doing import answered, ask, runs, settle

pytestmark = pytest.mark.timeout(300)

PHONE = {"width": 360, "height": 740}
RICH = """# Title

Some `code`, a [link](https://example.com/), $x^2$.

```
code
```

| a | b |
|---|---|
| 1 | 2 |
"""
WIDE = f"```\n{'long ' * 80}\n```\n\n{'x' * 400}\n\n| {' | '.join('abcdefghijklmnop')} |\n|{'---|' * 16}\n"


def serious(page: Page, axe: str) -> list[Any]:
    """What axe-core finds that is serious or worse. Evaluated by the debugger, which no policy binds."""
    page.evaluate(axe)
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        (one["id"], one["help"], [node["html"] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing_serious(
    new_page: Callable[..., Page], serve: Callable[..., str], model: Model, colours: str, axe: str
) -> None:
    model.answer = RICH
    page = new_page(serve(model.engine()), color_scheme=colours)
    page.get_by_label("reasoning").wait_for(state="attached")
    assert not serious(page, axe)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Token probabilities").check()
    answered(page, "Hi")
    page.get_by_label("Token probabilities").uncheck()
    answered(page, "Hi", button="All gears")
    page.locator(".thought summary").last.click()
    assert not serious(page, axe)
    page.get_by_role("button", name="Server").click()
    expect(page.get_by_text("KV cache pages")).to_be_visible()
    assert not serious(page, axe)
    page.get_by_label("Copy this code").last.click()
    assert not serious(page, axe)
    page.get_by_role("button", name="Code", exact=True).last.click()
    assert not serious(page, axe)


def test_a_phone_scrolls_down_only(new_page: Callable[..., Page], serve: Callable[..., str], model: Model) -> None:
    model.answer = WIDE
    page = new_page(serve(model.engine()), viewport=PHONE)
    answered(page, "y" * 300, button="All gears")
    for name in ("", "Conversations", "Settings", "Server"):
        if name:
            page.get_by_role("button", name=name, exact=True).first.click()
        widths = page.evaluate(
            "[document.documentElement, document.querySelector('.talk')].map(one => one.scrollWidth - one.clientWidth)"
        )
        assert widths == [0, 0], name
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_attached()


def test_everything_by_keyboard(page: Page) -> None:
    page.get_by_label("standard").wait_for(state="attached")
    page.keyboard.type("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("reasoning")).to_be_checked()
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.press("Enter")
    settle(page)
    expect(page.locator(".user p")).to_have_text("line one\nline two")
    expect(runs(page).locator(".gear")).to_have_text("reasoning")
    page.keyboard.type("both")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".columns .run")).to_have_count(2)


def test_settings_are_sent(page: Page, engine: FakeEngine) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_role("textbox", name="temperature").fill("0.25")
    page.get_by_role("textbox", name="max_completion_tokens").fill("50")
    page.locator(".composer").get_by_text("reasoning").click()
    page.get_by_label("Thinking budget in tokens").fill("3")
    answered(page, "Hi")
    assert engine.seen[0].sampling.temperature == 0.25
    expect(runs(page).locator(".thought summary")).to_contain_text("3 tokens")
    expect(runs(page).locator(".thought summary")).to_contain_text("ended by its budget")


@pytest.mark.parametrize("api", ["Chat completions", "Responses", "Messages"])
@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_the_code_of_a_request_runs(
    request: pytest.FixtureRequest, page: Page, engine: FakeEngine, tmp_path: Path, *, api: str, language: str
) -> None:
    """As it is shown: it sends the same prompt with the same settings, and prints the answer."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("It's brief.")
    page.get_by_role("textbox", name="temperature").fill("0.25")
    answered(page, "Hi, isn't it?", mode="reasoning")
    page.get_by_role("button", name="Code").click()
    page.locator("dialog").get_by_text(api, exact=True).click()
    prompt = engine.seen[0].prompt_ids
    page.locator("dialog").get_by_text(language, exact=True).click()
    code = page.locator("dialog pre").inner_text()
    if language == "JavaScript":
        printed = request.getfixturevalue("node")("--input-type=module", "-e", code)
    else:
        file = tmp_path / language
        file.write_text(code)
        command = ["bash"] if language == "curl" else [sys.executable]
        done = subprocess.run([*command, file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    assert "Hello" in printed
    assert len(engine.seen) == 2
    assert engine.seen[-1].prompt_ids == prompt
    assert engine.seen[-1].sampling.temperature == 0.25


def test_the_live_view(page: Page, model: Model) -> None:
    model.thought, model.pause = LONG, 0.002
    page.get_by_role("button", name="Server").click()
    expect(page.locator(".drawer")).to_contain_text("sliding 1 in use")
    ask(page, "Hi", mode="reasoning")
    row = page.locator(".drawer tr", has_text="reasoning").first
    expect(row.locator("td").first).to_have_text("1")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(row.locator("td").first).to_have_text("0")
