"""A page in Chromium, and a server behind it whose model writes what the test wants."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import pytest
from playwright.sync_api import Browser, Page

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import PROFILE_FOLDER, Profile, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.fake_engine import FakeEngine
from tests.page.chromium import CHROMIUM, SLOW_MS, chromium
from tests.scripted_server import serving
from tests.setup.test_house import ROOT

LONG = "\n".join(f"step {number}: {number * 7919 % 10007}" for number in range(3000)) + " end"
"""Text without loops, which the server would end."""
DESKTOP = {"width": 1200, "height": 800}


@dataclass
class Model:
    """What the model writes: `thought` where the prompt lets it think, then `answer`; each after `pause` seconds.

    `holds_after`: after so many tokens of each generation nothing comes until it is None again.
    """

    fmt: ChatFormat
    thought: str = "hm, hm"
    answer: str = "Hello"
    pause: float = 0.0
    holds_after: int | None = None
    steps: WeakKeyDictionary[Any, int] = field(default_factory=WeakKeyDictionary)
    """Of each generation, by the task that runs it."""

    def script(self, prompt_ids: list[int]) -> Iterator[int]:
        fmt = self.fmt
        thinking = [*fmt.encode_text(self.thought), fmt.think_end_id] if fmt.is_thinking_open(prompt_ids) else []
        return iter([*thinking, *fmt.encode_text(self.answer), fmt.end_of_turn_id])

    async def step(self) -> None:
        generation = asyncio.current_task()
        done = self.steps.get(generation, 0)
        while self.holds_after is not None and done >= self.holds_after:  # noqa: ASYNC110 - set by the test's thread
            await asyncio.sleep(0.01)
        self.steps[generation] = done + 1
        await asyncio.sleep(self.pause)

    def engine(self, **more: Any) -> FakeEngine:
        return FakeEngine(self.script, (self.fmt.end_of_turn_id,), step=self.step, **more)


@pytest.fixture(scope="session")
def fmt() -> ChatFormat:
    return ChatFormat.from_folder(EMBEDDED_MODEL)


@pytest.fixture(scope="session")
def profile() -> Profile:
    return load_profile(PROFILE_FOLDER / "twogear_tiny.toml")


@pytest.fixture
def model(fmt: ChatFormat) -> Model:
    return Model(fmt)


@pytest.fixture
def engine(model: Model) -> FakeEngine:
    return model.engine(max_context=100_000)


@pytest.fixture
def serve(profile: Profile, fmt: ChatFormat) -> Iterator[Callable[..., str]]:
    """Serves an engine until the test ends: its address."""
    with ExitStack() as servers:

        def start(engine: FakeEngine, *, wrap: Callable[[Any], Any] = lambda app: app, **more: Any) -> str:
            app = create_app(engine, more.pop("settings", Settings()), profile, fmt, **more)
            return servers.enter_context(serving(wrap(app))).removesuffix("/v1")

        yield start


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module, not of the session: while Playwright is up, no other test of its thread can have an event loop."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (Debian: chromium)")
    with chromium() as browser:
        yield browser


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages in browsers of their own; at the end none may have had an error or broken its policy."""
    with ExitStack() as contexts:
        problems: list[str] = []
        hosts: list[set[str]] = []

        def open_page(url: str, *, script: str = "", **context_options: Any) -> Page:
            context = browser.new_context(**{"viewport": DESKTOP, **context_options})
            contexts.callback(context.close)
            context.set_default_timeout(SLOW_MS)
            if script:
                context.add_init_script(script)
            page = context.new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda said: problems.append(said.text) if "Content Security" in said.text else None)
            asked: set[str] = set()
            hosts.append(asked)
            page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
            page.goto(url)
            return page

        yield open_page
        assert not problems
        assert all(len(asked - {""}) == 1 for asked in hosts), "a page asks its own server and nobody else"


@pytest.fixture
def page(new_page: Callable[..., Page], serve: Callable[..., str], engine: FakeEngine) -> Page:
    """The page of a server with `model` behind it."""
    return new_page(serve(engine))


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's script, of the page's own packages."""
    script = ROOT / "ui" / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        pytest.skip("make ui installs axe-core")
    return script.read_text()
