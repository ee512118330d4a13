"""What the page says when something is wrong, and that nothing typed is lost."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.keys import Key, KeyFile, hash_of
from server.commands.chat.conversation import Conversation, Progress, Run
from server.commands.chat.saved import exported
from server.engine_client import EngineStatus
from server.settings import LoraModule, Settings
from tests.fake_engine import FakeEngine
from tests.page.conftest import Model
from tests.page.doing import answered, ask, runs, settle

pytestmark = pytest.mark.timeout(300)

NO_STORAGE = """
for (const name of ["localStorage", "sessionStorage"])
    Object.defineProperty(window, name, {get() { throw new DOMException("not here", "SecurityError"); }});
"""
FULL_STORAGE = """
Storage.prototype.setItem = () => { throw new DOMException("no more", "QuotaExceededError"); };
"""


class Cut:
    """An app whose first stream comes to `after` parts; it ends at `now`, as if the connection was lost."""

    def __init__(self, app: ASGIApp, after: int, now: threading.Event) -> None:
        self._app = app
        self._after = after
        self._now = now
        self._left = 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("completions") or self._left == 0:
            await self._app(scope, receive, send)
            return
        self._left -= 1
        parts = 0

        async def cutting(message: Message) -> None:
            nonlocal parts
            parts += 1
            if parts > self._after:
                while not self._now.is_set():  # noqa: ASYNC110 - set by another thread
                    await asyncio.sleep(0.01)
                raise ConnectionError
            await send(message)

        await self._app(scope, receive, cutting)


def test_a_cut_stream_says_so_and_offers_a_retry(
    new_page: Callable[..., Page], serve: Callable[..., str], model: Model
) -> None:
    model.answer = "one two three four five six seven eight"
    now = threading.Event()
    page = new_page(serve(model.engine(), wrap=lambda app: Cut(app, after=6, now=now)))
    ask(page, "Hi", mode="standard")
    expect(runs(page).locator(".markdown")).to_contain_text("one")  # what a browser has not read yet, a cut may lose
    now.set()
    expect(runs(page).locator(".error")).to_contain_text("What came before is kept")
    expect(runs(page).locator(".markdown")).to_contain_text("one")
    page.get_by_role("button", name="Again in standard").click()
    expect(runs(page).locator(".markdown")).to_have_text(model.answer)
    expect(runs(page)).to_have_count(1)


def test_an_engine_that_is_lost_says_so(new_page: Callable[..., Page], serve: Callable[..., str], model: Model) -> None:
    model.answer = "one two three four"
    engine = model.engine(fail_after=2)
    page = new_page(serve(engine))
    ask(page, "Hi", mode="standard")
    expect(runs(page).locator(".error")).to_contain_text("Engine lost")
    engine.fail_after = None
    page.get_by_role("button", name="Again in standard").click()
    expect(runs(page).locator(".markdown")).to_have_text(model.answer)


def test_loading_and_coming_back(new_page: Callable[..., Page], serve: Callable[..., str], model: Model) -> None:
    engine = model.engine()
    engine.status = EngineStatus("loading", "reading weights", 0.4)
    page = new_page(serve(engine))
    expect(page.get_by_text("reading weights")).to_be_visible()
    expect(page.get_by_text("40 %")).to_be_visible()
    page.get_by_label("Message", exact=True).fill("typed meanwhile")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    engine.status = EngineStatus("ready", "", 1.0)
    expect(page.get_by_text("reading weights")).to_be_hidden()
    expect(page.get_by_label("Message", exact=True)).to_have_value("typed meanwhile")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(runs(page).locator(".markdown")).to_have_text("Hello")


def test_a_server_that_turned_into_another_version(page: Page) -> None:
    page.get_by_label("reasoning").wait_for(state="attached")
    newer = json.dumps({"version": "99.0", "engine": None})
    page.route("**/health", lambda route: route.abort())
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_text("cannot be reached")).to_be_visible()
    page.route("**/version", lambda route: route.fulfill(body=newer, content_type="application/json"))
    page.unroute("**/health")
    expect(page.get_by_text("The server is now version 99.0")).to_be_visible()


def test_a_server_without_modes(new_page: Callable[..., Page], serve: Callable[..., str], model: Model) -> None:
    listed = json.dumps({"object": "list", "data": [{"id": "twogear-tiny", "object": "model"}]})
    page = new_page("about:blank")
    page.route("**/v1/models", lambda route: route.fulfill(body=listed, content_type="application/json"))
    page.goto(serve(model.engine()))
    expect(page.get_by_text("lists no modes")).to_be_visible()
    answered(page, "Hi")
    expect(runs(page).locator(".markdown")).to_have_text("Hello")


def test_a_message_over_the_context_tells_both_numbers(
    new_page: Callable[..., Page], serve: Callable[..., str], model: Model
) -> None:
    page = new_page(serve(model.engine(max_context=256)))
    ask(page, "word " * 2000, mode="standard")
    expect(runs(page).locator(".error")).to_have_text(
        re.compile(r"length is 256 tokens.* requested (at least )?\d{3,}")
    )
    expect(page.locator(".user p")).to_contain_text("word word")
    page.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_label("Edit the message").fill("Hi")
    page.get_by_role("button", name="Send again").click()
    expect(runs(page).locator(".markdown")).to_have_text("Hello")


@pytest.mark.parametrize(
    ("field", "typed", "told"),
    [
        ("Tools", "[{", "Tools: this is no JSON"),
        ("Tools", "{}", "Tools: a JSON list is needed"),
        ("JSON schema of the answer", "[]", "JSON schema: an object is needed"),
        ("temperature", "warm", 'temperature: "warm" is no number'),
        ("top_k", "1.5", 'top_k: "1.5" is no whole number'),
    ],
)
def test_a_setting_that_is_none_is_named(page: Page, engine: FakeEngine, field: str, typed: str, told: str) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name=field, exact=True).fill(typed)
    ask(page, "Hi")
    expect(page.get_by_role("alert")).to_contain_text(told)
    expect(page.get_by_label("Message", exact=True)).to_have_value("Hi")
    assert not engine.seen


def test_a_browser_without_storage(new_page: Callable[..., Page], serve: Callable[..., str], model: Model) -> None:
    page = new_page(serve(model.engine()), script=NO_STORAGE)
    expect(page.get_by_text("This browser keeps nothing")).to_be_visible()
    answered(page, "Hi")
    expect(runs(page).locator(".markdown")).to_have_text("Hello")


def test_a_browser_whose_storage_is_full(
    new_page: Callable[..., Page], serve: Callable[..., str], model: Model
) -> None:
    page = new_page(serve(model.engine()), script=FULL_STORAGE)
    answered(page, "Hi")
    expect(page.get_by_text("storage for this page is full")).to_be_visible()
    expect(runs(page).locator(".markdown")).to_have_text("Hello")
    page.get_by_label("Message", exact=True).fill("typed")
    expect(page.get_by_label("Message", exact=True)).to_have_value("typed")


def test_a_model_of_several_is_chosen(new_page: Callable[..., Page], serve: Callable[..., str], model: Model) -> None:
    """As an adapter is: a name of its own in the list, with its modes."""
    listed = [
        {"id": f"{root}{alias}", "object": "model", "root": root, "reasoning_mode": mode, "kind": "direct"}
        for root in ("twogear-tiny", "adapter")
        for alias, mode in (("", "standard"), (":standard", "standard"))
    ]
    page = new_page("about:blank")
    body = json.dumps({"object": "list", "data": listed})
    page.route("**/v1/models", lambda route: route.fulfill(body=body, content_type="application/json"))
    page.goto(serve(model.engine()))
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("combobox").select_option("adapter")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "Hi", mode="standard")
    assert json.loads(asked.value.post_data or "")["model"] == "adapter"
    expect(runs(page).locator(".error")).to_contain_text("adapter")  # which this server has not


def test_an_adapter_is_chosen(new_page: Callable[..., Page], serve: Callable[..., str], model: Model) -> None:
    engine = model.engine()
    page = new_page(serve(engine, settings=Settings(lora_modules=(LoraModule("sql", "/a"),))))
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("combobox").select_option("sql")
    expect(page.get_by_role("heading", level=1)).to_contain_text("sql")
    answered(page, "Hi", mode="reasoning")
    expect(runs(page).locator(".gear")).to_have_text("reasoning")
    assert [request.adapter and request.adapter.name for request in engine.seen] == ["sql"]


def test_conversations_and_drafts_are_kept(page: Page) -> None:
    answered(page, "Hi", button="All gears")
    page.get_by_label("Message", exact=True).fill("not sent yet")
    page.reload()
    expect(runs(page)).to_have_count(2)
    expect(runs(page).locator(".markdown").first).to_have_text("Hello")
    expect(page.get_by_label("Message", exact=True)).to_have_value("not sent yet")
    page.get_by_role("button", name="Delete Hi").click()
    page.reload()
    expect(page.get_by_text("One model, two gears")).to_be_visible()


def test_what_was_typed_before_the_first_message_is_kept(page: Page) -> None:
    """A new server version asks for the page to be loaded anew."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="Tools", exact=True).fill('[{"name": "clock"')
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_role("textbox", name="Tools", exact=True)).to_have_value('[{"name": "clock"')


def test_export_and_import(page: Page, tmp_path: Path) -> None:
    answered(page, "Hi", button="All gears")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "saved.json"
    download.value.save_as(file)
    exported = json.loads(file.read_text())
    assert exported["format"] == "twogear-conversations"
    page.get_by_role("button", name="Delete Hi").click()
    expect(runs(page)).to_have_count(0)
    page.get_by_label("File to import").set_input_files(file)
    expect(page.get_by_text("Imported 1 conversation from saved.json")).to_be_visible()
    expect(runs(page)).to_have_count(2)


@pytest.mark.parametrize(
    ("first_tokens", "last_token", "told"),
    [(1, 250.0, "27 tokens/s"), (4, 250.0, "too quick for a rate"), (1, 109.0, "too quick for a rate")],
)
def test_a_rate_is_of_tokens_that_came_after_the_first(
    page: Page, tmp_path: Path, *, first_tokens: int, last_token: float, told: str
) -> None:
    came = Progress(
        phase="done", completion_tokens=5, first_token=100.0, first_tokens=first_tokens, last_token=last_token
    )
    conversation = Conversation(title="Hi", updated=1)
    run = Run(mode="standard", thinks=False, body={"messages": []}, answer="Hello", progress=came)
    conversation.add("Hi", [run], 0)
    file = tmp_path / "chat.json"
    file.write_bytes(exported([conversation]))
    page.get_by_label("File to import").set_input_files(file)
    expect(runs(page).locator(".numbers")).to_contain_text(told)


def test_what_the_terminal_saved_is_imported(
    new_page: Callable[..., Page], serve: Callable[..., str], engine: FakeEngine, model: Model, tmp_path: Path
) -> None:
    url, file = serve(engine), tmp_path / "chat.json"
    typed = f"/system Be kind.\n/budget 40\nHi\n/both And you?\n/use reasoning\n/save {file}\n"
    command = [str(Path(sys.executable).parent / "twogear"), "chat", "--url", url]
    subprocess.run(command, input=typed, text=True, check=True, capture_output=True)
    page = new_page(url)
    page.get_by_label("File to import").set_input_files(file)
    expect(page.get_by_text("Imported 1 conversation from chat.json")).to_be_visible()
    expect(runs(page)).to_have_count(3)
    expect(runs(page).locator(".markdown").last).to_have_text("Hello")
    expect(runs(page).locator(".thought")).to_have_count(1)
    answered(page, "Go on")
    assert "Be kind." in model.fmt.decode(engine.seen[-1].prompt_ids)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("not JSON", "no JSON"),
        ("[]", "is no object"),
        ('{"conversations": []}', "no export of Twogear"),
        ('{"format": "twogear-conversations", "version": 7}', "version 7"),
        (
            '{"format": "twogear-conversations", "version": 1, "conversations": [{"title": 3}]}',
            "conversations[0].title is no text",
        ),
    ],
)
def test_a_file_that_is_no_export(page: Page, tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    page.get_by_label("File to import").set_input_files(file)
    expect(page.locator(".banner")).to_contain_text("other.json was not imported. ")
    expect(page.locator(".banner")).to_contain_text(told)


def test_keys(new_page: Callable[..., Page], serve: Callable[..., str], model: Model) -> None:
    """The page itself needs none; the models do, and the live view needs one that may more."""
    keys = KeyFile(keys=(Key(name="reader", hash=hash_of(b"sk-reader")),))
    page = new_page(serve(model.engine(), keys=keys))
    field = page.locator(".banner").get_by_label("API key")
    field.fill("sk-wrong")
    page.get_by_role("button", name="Use it").click()
    expect(page.locator(".banner")).to_contain_text("key")
    field.fill("sk-reader")
    page.get_by_role("button", name="Use it").click()
    expect(page.locator(".banner")).to_have_count(0)
    answered(page, "Hi")
    expect(runs(page).locator(".markdown")).to_have_text("Hello")
    page.get_by_role("button", name="Server").click()
    expect(page.get_by_text("needs an API key that may read /metrics")).to_be_visible()


def test_a_stream_that_stalls_says_so(new_page: Callable[..., Page], serve: Callable[..., str], model: Model) -> None:
    model.pause = 3600
    page = new_page("about:blank")
    page.clock.install()
    page.goto(serve(model.engine()))
    ask(page, "Hi", mode="standard")
    expect(page.get_by_text("waits for its first token")).to_be_visible()
    page.clock.run_for(20_000)
    expect(page.get_by_text("Nothing has come for a while")).to_be_visible()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.clock.run_for(1_000)
    settle(page)
    expect(runs(page)).to_contain_text("Stopped")
