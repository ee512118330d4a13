"""Web pages in a real Chromium: what a page of an allowed origin gets, and what a foreign one can have done.

The page notes what came of its requests. Skipped where there is no browser (`.ci/run` installs one).
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser
from starlette.responses import HTMLResponse

from chat_templates.format import ChatFormat
from server.access.keys import Key, KeyFile, Limits, hash_of
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.page.chromium import SLOW_MS, chromium, needs_chromium
from tests.scripted_server import serving
from tests.server.conftest import always, body

pytestmark = needs_chromium

# `results` gets what each request came to: the status and text, or the name of the error that the page got instead.
SCRIPT = """
<!doctype html><title>page</title><script>
const api = %(api)s, asked = %(asked)s, results = {};
async function attempt(name, work) {
  try { results[name] = await work(); } catch (error) { results[name] = error.name; }
}
async function post(path, options) {
  const response = await fetch(api + path, {method: "POST", ...options});
  const left = response.headers.get("x-ratelimit-remaining-requests");
  return {status: response.status, text: await response.text(), left};
}
const json = {"Content-Type": "application/json"}, key = {...json, "Authorization": "Bearer sk-page"};
const content = JSON.stringify(asked), streamed = JSON.stringify({...asked, stream: true});
async function chunks() {
  const response = await fetch(api + "/v1/chat/completions", {method: "POST", headers: key, body: streamed});
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let text = "", count = 0;
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return {count, text};
    text += decoder.decode(value, {stream: true});
    count += 1;
  }
}
(async () => {
  await attempt("whole", () => post("/v1/chat/completions", {headers: key, body: content}));
  await attempt("stream", chunks);
  await attempt("no key", () => post("/v1/chat/completions", {headers: json, body: content}));
  await attempt("models", async () => (await fetch(api + "/v1/models", {headers: key})).status);
  for (const type of ["text/plain", "application/x-www-form-urlencoded"])
    await attempt("unasked " + type, () =>
      post("/v1/chat/completions", {mode: "no-cors", headers: {"Content-Type": type}, body: content}));
  await attempt("beacon", async () => navigator.sendBeacon(api + "/v1/chat/completions", content));
  await attempt("form", () => new Promise(resolve => {
    const frame = document.createElement("iframe");
    frame.name = "frame";
    document.body.append(frame);
    const form = document.createElement("form");
    Object.assign(form, {method: "POST", action: api + "/v1/chat/completions", target: "frame", enctype: "text/plain"});
    const field = document.createElement("input");
    Object.assign(field, {name: content.slice(0, -1) + ', "user": "', value: '"}'});
    form.append(field);
    document.body.append(form);
    frame.onload = () => resolve("sent");
    form.submit();
  }));
  window.results = results;
})();
</script><body></body>
"""


class PageServer:
    """Serves the page, on an origin of its own."""

    def __init__(self) -> None:
        self.html = ""
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.origin = f"http://localhost:{self._http.server_port}"  # another site than 127.0.0.1
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = outer.html.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base class
                """Says nothing."""

        return Handler


@pytest.fixture
def pages() -> Iterator[PageServer]:
    server = PageServer()
    yield server
    server.close()


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("Hello"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def html(api: str) -> str:
    return SCRIPT % {"api": json.dumps(api), "asked": json.dumps(body())}


def results_at(url: str, browser: Browser) -> dict[str, Any]:
    """What came of the requests of the page at `url`."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        page.wait_for_function("window.results", timeout=SLOW_MS)
        results: dict[str, Any] = page.evaluate("window.results")
        return results


def results_of(pages: PageServer, app: FastAPI, browser: Browser) -> dict[str, Any]:
    """What came of the requests of a page that the page server has."""
    with serving(app) as url:
        pages.html = html(url.removesuffix("/v1"))
        return results_at(pages.origin, browser)


@pytest.mark.timeout(400)
def test_a_page_of_an_allowed_origin(
    pages: PageServer, engine: FakeEngine, profile: Profile, fmt: ChatFormat, browser: Browser
) -> None:
    limits = Limits(requests_per_minute=100)
    keys = KeyFile(keys=(Key(name="page", hash=hash_of(b"sk-page"), limits=limits),))
    app = create_app(engine, Settings(allowed_origins=(pages.origin,)), profile, fmt, keys=keys)
    results = results_of(pages, app, browser)
    assert results["whole"]["status"] == 200
    assert json.loads(results["whole"]["text"])["choices"][0]["message"]["content"] == "Hello"
    assert results["whole"]["left"] == "99"
    assert results["stream"]["text"].endswith("data: [DONE]\n\n")
    assert results["models"] == 200
    assert results["no key"]["status"] == 401
    assert json.loads(results["no key"]["text"])["error"]["code"] == "invalid_api_key"
    assert len(engine.seen) == 2, "nothing but what had a key"


@pytest.mark.timeout(400)
def test_a_foreign_page(
    pages: PageServer, engine: FakeEngine, profile: Profile, fmt: ChatFormat, browser: Browser
) -> None:
    results = results_of(pages, create_app(engine, Settings(), profile, fmt), browser)
    assert results["whole"] == results["stream"] == results["no key"] == results["models"] == "TypeError"
    for name in ("unasked text/plain", "unasked application/x-www-form-urlencoded"):
        assert results[name] == {"status": 0, "text": "", "left": None}, "sent, but for nothing that the page can read"
    assert (results["beacon"], results["form"]) == (True, "sent")
    assert not engine.seen


@pytest.mark.timeout(400)
def test_the_servers_own_page(engine: FakeEngine, profile: Profile, fmt: ChatFormat, browser: Browser) -> None:
    app = create_app(engine, Settings(), profile, fmt)

    @app.get("/page")
    async def page() -> HTMLResponse:
        return HTMLResponse(html(""))

    with serving(app) as url:
        results = results_at(f"{url.removesuffix('/v1')}/page", browser)
    assert results["whole"]["status"] == 200
    assert results["stream"]["text"].endswith("data: [DONE]\n\n")
    assert results["models"] == 200
