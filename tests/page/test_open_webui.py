"""Open WebUI in Chromium, in front of Twogear: the modes are models, the thinking is folded, Stop ends it."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.page import open_webui
from tests.page.chromium import SLOW_MS
from tests.page.conftest import DESKTOP, LONG, Model
from tests.page.open_webui import ask, stop
from tests.scripted_server import serving

pytestmark = [
    pytest.mark.skipif(not open_webui.COMMAND.exists(), reason="Open WebUI is not installed: make test-open-webui"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def scripted(fmt: ChatFormat) -> Model:
    """The model behind the one Open WebUI of these tests."""
    return Model(fmt)


@pytest.fixture(scope="module")
def engine(scripted: Model) -> FakeEngine:
    return scripted.engine(max_context=100_000)


@pytest.fixture(scope="module")
def address(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with (
        serving(create_app(engine, Settings(), profile, fmt)) as url,
        open_webui.open_webui(url, tmp_path_factory.mktemp("open-webui")) as address,
    ):
        yield address


@pytest.fixture
def page(browser: Browser, address: str, scripted: Model, engine: FakeEngine) -> Iterator[Page]:
    """It asks its own server alone."""
    scripted.thought, scripted.answer, scripted.pause = "hm, hm", "Hello", 0.0
    engine.seen.clear()
    context = browser.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
    context.set_default_timeout(SLOW_MS)
    page = context.new_page()
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    yield page
    context.close()
    assert asked - {""} == {urlsplit(address).netloc}


def test_each_mode_is_a_model(page: Page, address: str) -> None:
    open_webui.begin(page, address, "twogear-tiny")
    page.get_by_role("button", name="Selected model").click()
    for name in ("twogear-tiny", "twogear-tiny:standard", "twogear-tiny:reasoning"):
        expect(page.get_by_role("option", name=f"Select {name} model", exact=True)).to_be_visible()


def test_the_thinking_is_folded_above_the_answer(page: Page, address: str, scripted: Model) -> None:
    open_webui.begin(page, address, "twogear-tiny:reasoning")
    ask(page, "Hi")
    folded = page.get_by_role("button", name="Thought")
    expect(page.get_by_text(scripted.answer, exact=True)).to_be_visible()
    expect(page.get_by_text(scripted.thought)).to_be_hidden()
    folded.click()
    expect(page.get_by_text(scripted.thought)).to_be_visible()


def test_the_mode_that_answers_at_once_has_no_thought(page: Page, address: str, scripted: Model) -> None:
    open_webui.begin(page, address, "twogear-tiny:standard")
    ask(page, "Hi")
    expect(page.get_by_text(scripted.answer, exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Thought")).to_have_count(0)


@pytest.mark.parametrize("phase", ["thought", "answer"])
def test_stop_ends_it_and_keeps_what_came(
    page: Page, address: str, scripted: Model, engine: FakeEngine, phase: str
) -> None:
    setattr(scripted, phase, LONG)
    scripted.pause = 0.01
    open_webui.begin(page, address, "twogear-tiny:reasoning")
    ask(page, "Hi")
    if phase == "thought":
        page.get_by_role("button", name="Thinking").click()
    expect(page.get_by_text("step 3:")).to_be_visible()
    stop(page).click()
    expect(stop(page)).to_be_hidden()
    expect(page.get_by_text("step 3:")).to_be_visible()
    assert engine.aborted, "the engine works on"


def test_its_own_tools_are_left_out(page: Page, address: str, engine: FakeEngine, fmt: ChatFormat) -> None:
    """`DEFAULT_MODEL_METADATA`: the prompt is the message and nothing else."""
    open_webui.begin(page, address, "twogear-tiny:reasoning")
    ask(page, "Hi")
    expect(page.get_by_role("button", name="Thought")).to_be_visible()
    (prompt,) = [request.prompt_ids for request in engine.seen if fmt.is_thinking_open(request.prompt_ids)]
    assert fmt.decode(prompt, show_control=True).startswith("[|user|]\nHi[|endofturn|]")


def test_its_own_requests_go_to_the_mode_that_answers_at_once(
    page: Page, address: str, engine: FakeEngine, fmt: ChatFormat
) -> None:
    """Titles and tags, which it asks for beside each message: `TASK_MODEL_EXTERNAL` of the settings."""
    open_webui.begin(page, address, "twogear-tiny:reasoning")
    ask(page, "Hi")
    expect(page.get_by_role("button", name="Thought")).to_be_visible()
    while len(engine.seen) < 2:
        page.wait_for_timeout(50)
    thinking = [fmt.is_thinking_open(request.prompt_ids) for request in engine.seen]
    assert thinking.count(True) == 1
