"""Talking on the page: every mode, stopping, editing, asking again, and what the model writes staying text."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from chat_templates.format import ChatFormat
from tests.fake_engine import FakeEngine
from tests.page.conftest import LONG, Model
from tests.page.doing import answered, ask, runs, settle
from tests.scripted_server import InOnePiece

pytestmark = pytest.mark.timeout(300)

HOSTILE = """<script>window.hit = 1</script> <img src=x onerror="window.hit = 1">

**bold** <b onclick="window.hit = 1">text</b>

[click](javascript:window.hit=1) [go](https://example.com/) ![picture](https://example.com/leak?secret)

<svg onload="window.hit = 1"></svg><iframe src="javascript:parent.hit=1"></iframe>

\\(\\href{javascript:hit=1}{x}\\) $$x^2$$

```html
<script>window.hit = 1</script>
```
"""


def test_an_answer_in_each_mode(page: Page, model: Model) -> None:
    answered(page, "Hi", mode="standard")
    expect(runs(page).last.locator(".markdown")).to_have_text("Hello")
    expect(runs(page).last.locator(".thought")).to_have_count(0)
    answered(page, "Again", mode="reasoning")
    thought = runs(page).last.locator(".thought")
    expect(thought.locator(".plain")).to_be_hidden()
    thought.locator("summary").click()
    expect(thought.locator(".plain")).to_have_text(model.thought)
    tokens = len(model.fmt.encode_text(model.thought))
    expect(thought.locator("summary")).to_contain_text(f"{tokens} tokens")


def test_all_gears_with_the_figures_of_each(page: Page, model: Model) -> None:
    model.answer, model.holds_after = "one two three", 2
    ask(page, "Hi", button="All gears")
    expect(runs(page).locator(".gear")).to_have_text(["standard", "reasoning"])
    expect(runs(page).first.locator(".markdown")).to_contain_text("one")
    expect(runs(page).last.locator(".plain")).to_contain_text("h")
    page.wait_for_timeout(50)
    model.holds_after = None
    settle(page)
    for run in runs(page).all():
        for figure in (r"\d tokens", r"first after \d", r"\d tokens/s", r"prompt \d"):
            expect(run.locator(".numbers")).to_contain_text(re.compile(figure))


def test_no_figure_is_shown_of_what_came_in_one_piece(
    new_page: Callable[..., Page], serve: Callable[..., str], model: Model
) -> None:
    """Neither a rate, nor how long the thinking took."""
    page = new_page(serve(model.engine(), wrap=InOnePiece))
    answered(page, "Hi", mode="reasoning")
    tokens = len(model.fmt.encode_text(model.thought))
    expect(runs(page).locator(".thought summary")).to_have_text(f"Thought · {tokens} tokens")
    expect(runs(page).locator(".numbers")).to_contain_text("too quick for a rate")
    expect(runs(page).locator(".numbers")).not_to_contain_text("tokens/s")
    expect(runs(page).locator(".timeline")).to_have_accessible_name(re.compile(r"^\S+ m?s until the first token"))


def test_going_on_from_one_of_all_gears(page: Page, model: Model, engine: FakeEngine, fmt: ChatFormat) -> None:
    answered(page, "Hi", button="All gears")
    expect(runs(page)).to_have_count(2)
    model.answer = "second"
    page.get_by_role("button", name="Retry in reasoning").click()
    expect(runs(page)).to_have_count(3)
    settle(page)
    runs(page).nth(2).get_by_label("go on from this").check()
    answered(page, "And now?")
    assert "second" in fmt.decode(engine.seen[-1].prompt_ids)
    assert "Hello" not in fmt.decode(engine.seen[-1].prompt_ids)


def test_a_newcomer_sees_both_gears_by_one_click(page: Page, model: Model) -> None:
    welcome = page.locator(".welcome")
    expect(welcome.locator(".gears")).to_contain_text("standard answers at once")
    expect(welcome.locator(".gears")).to_contain_text("reasoning thinks first")
    welcome.get_by_role("button", name="What is 17 * 23?").click()
    expect(page.locator(".user p")).to_have_text("What is 17 * 23?")
    settle(page)
    expect(runs(page).locator(".gear")).to_have_text(["standard", "reasoning"])


def test_a_timeline_shows_where_the_time_went_on_one_scale(page: Page, model: Model) -> None:
    model.pause = 0.05
    model.thought = "one two three four five six seven eight nine ten"
    answered(page, "Hi", button="All gears")
    lines = page.locator(".timeline")
    expect(lines.nth(0)).to_have_accessible_name(re.compile("until the first token, .* answering"))
    expect(lines.nth(1)).to_have_accessible_name(re.compile("until the first token, .* thinking, .* answering"))
    ends = lines.evaluate_all("""lines => lines.map(line => {
        const last = line.lastElementChild;
        return last.x.baseVal.value + last.width.baseVal.value;
    })""")
    assert max(ends) == pytest.approx(1000)
    assert ends[0] < ends[1]


def test_retry_in_the_other_gear_and_back(page: Page) -> None:
    answered(page, "Hi", mode="standard")
    page.get_by_role("button", name="Retry in reasoning").click()
    expect(page.locator(".pager")).to_contain_text("2 of 2")
    expect(runs(page).locator(".gear")).to_have_text(["reasoning"])
    page.get_by_label("The answer before").click()
    expect(runs(page).locator(".gear")).to_have_text(["standard"])
    page.get_by_role("button", name="Side by side").click()
    expect(runs(page)).to_have_count(2)


def test_answer_now(page: Page, model: Model) -> None:
    model.thought, model.pause = LONG, 0.002
    ask(page, "Hi", mode="reasoning")
    page.get_by_role("button", name="Answer now").click()
    settle(page)
    expect(runs(page).locator(".thought summary")).to_contain_text("told to answer")
    expect(runs(page).locator(".markdown")).to_have_text("Hello")


def test_escape_ends_the_thinking_first_and_the_answer_second(page: Page, model: Model) -> None:
    model.thought, model.answer, model.pause = LONG, LONG, 0.002
    ask(page, "Hi", mode="reasoning")
    expect(page.get_by_role("button", name="Answer now")).to_be_visible()
    page.keyboard.press("Escape")
    expect(runs(page).locator(".markdown")).to_contain_text("step 1")
    page.keyboard.press("Escape")
    expect(runs(page)).to_contain_text("Stopped. What came is kept.")


def test_stop_keeps_what_came(page: Page, model: Model, engine: FakeEngine) -> None:
    model.answer, model.pause = LONG, 0.05
    ask(page, "Hi", mode="standard")
    expect(runs(page).locator(".markdown")).to_contain_text("step 1")
    page.get_by_role("button", name="Stop", exact=True).click()
    settle(page)
    expect(runs(page)).to_contain_text("Stopped")
    expect(runs(page).locator(".markdown")).to_contain_text("step 1")


def test_an_edited_message_replaces_what_came_after(page: Page, engine: FakeEngine, fmt: ChatFormat) -> None:
    answered(page, "First")
    answered(page, "Second")
    page.get_by_role("button", name="Edit", exact=True).first.click()
    page.get_by_label("Edit the message").fill("Changed")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".user p")).to_have_text(["Changed"])
    settle(page)
    assert "First" not in fmt.decode(engine.seen[-1].prompt_ids)


def test_nothing_that_the_model_writes_runs_or_loads(page: Page, model: Model) -> None:
    model.answer = HOSTILE
    answered(page, "Hi", mode="reasoning")
    shown = runs(page).locator(".markdown")
    expect(shown.locator("strong")).to_have_text("bold")
    expect(shown.locator("math").first).to_be_attached()
    expect(shown.locator("pre code")).to_contain_text("<script>window.hit = 1</script>")
    expect(shown).to_contain_text("<img src=x onerror=")
    assert shown.locator("script, img, iframe, svg, [onerror], [onload]").count() == 0
    hrefs = shown.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert [href for href in hrefs if href] == ["https://example.com/", "https://example.com/leak?secret"]
    assert page.evaluate("window.hit") is None


def test_a_message_of_markup_stays_text(page: Page) -> None:
    answered(page, HOSTILE)
    assert page.locator(".user script, .user img").count() == 0
    assert page.evaluate("window.hit") is None


def test_a_long_thought_is_only_added_to(
    new_page: Callable[..., Page], serve: Callable[..., str], model: Model
) -> None:
    """Text that is there is never taken away or written again, so that a frame's work does not grow with it."""
    model.thought, model.pause = LONG, 0.001
    page = new_page(serve(model.engine(max_context=100_000, chunks=(8,))))
    ask(page, "Hi", mode="reasoning")
    plain = runs(page).locator(".plain")
    plain.wait_for(state="attached")
    page.evaluate("""() => {
        window.removed = 0;
        new MutationObserver(changes => changes.forEach(change => {
            if (change.type === "characterData" || change.removedNodes.length > 0) window.removed += 1;
        })).observe(document.querySelector(".plain"), {childList: true, subtree: true, characterData: true});
    }""")
    settle(page)
    expect(runs(page).locator(".error")).to_have_count(0)
    assert plain.evaluate("element => element.textContent") == model.thought
    assert page.evaluate("window.removed") == 0
    lengths = plain.evaluate("element => [...element.children].map(piece => piece.textContent.length)")
    assert max(lengths) < 2000


COUNT_WRITTEN = """() => {
    window.written = {characters: 0, frames: 0};
    const thought = document.querySelector(".thought");
    new MutationObserver(changes => {
        for (const {target, addedNodes} of changes) {
            for (const node of addedNodes) window.written.characters += node.textContent.length;
            if (addedNodes.length === 0) window.written.characters += target.textContent.length;
            if (target.parentElement.matches(".peek")) window.written.frames += 1;
        }
    }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""
MOST_BESIDE = 1000
"""Characters that a frame may write beside what came: the last words, counts and seconds."""


@pytest.mark.parametrize("unfolded", [False, True])
def test_a_frame_of_a_long_thought_writes_what_came_and_little_more(
    new_page: Callable[..., Page], serve: Callable[..., str], model: Model, unfolded: bool
) -> None:
    """On the whole page, so that the last of ten thousand tokens costs what the first one did."""
    model.thought, model.pause = LONG, 0.001
    assert len(model.fmt.encode_text(LONG)) > 10_000
    page = new_page(serve(model.engine(max_context=100_000, chunks=(8,))))
    ask(page, "Hi", mode="reasoning")
    runs(page).locator(".plain").wait_for(state="attached")
    page.evaluate(COUNT_WRITTEN)
    if unfolded:
        runs(page).locator(".thought summary").click()
    settle(page)
    written = page.evaluate("window.written")
    assert written["frames"] > 5  # fewer where others take the cores
    assert written["characters"] < len(LONG) + MOST_BESIDE * written["frames"]
