"""What web pages may do over HTTP: pages of allowed origins read answers, all others can have nothing done."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server import cli
from server.access.origins import EXPOSED, is_loopback
from server.app import create_app
from server.cli_errors import UsageError
from server.commands import serve
from server.commands.serve import settings_of
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always, body
from tests.server.test_http import error_of

CHAT = "/v1/chat/completions"
PAGE = "https://app.example"
EVIL = "https://evil.example"


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("Hello"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


@pytest.fixture
async def http(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> AsyncIterator[httpx.AsyncClient]:
    async with connected(engine, profile, fmt) as client:
        yield client


@pytest.fixture
async def with_page(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> AsyncIterator[httpx.AsyncClient]:
    async with connected(engine, profile, fmt, allowed_origins=(PAGE,)) as client:
        yield client


@asynccontextmanager
async def connected(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, url: str = "http://127.0.0.1:8000", **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose requests come to the address in `url`, as uvicorn tells it."""
    app = create_app(engine, Settings(**settings), profile, fmt)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=url) as client:
        yield client


FOREIGN = [
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:8001"},
    {"Origin": "http://localhost:8000"},
    {"Origin": "http://127.0.0.1:8000.evil.example"},
    {"Origin": "http://127.0.0.1:8000@evil.example"},
    {"Origin": "http://127.0.0.1:99999999"},
    {"Origin": "//"},
    {"Origin": ""},
    {"Origin": EVIL, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize", f"{CHAT}/x/control", "/v1/new"])
async def test_a_foreign_page_has_nothing_done(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, headers: dict[str, str]
) -> None:
    response = await http.post(path, json=body(), headers=headers)
    assert response.status_code == 403
    assert "--allowed-origins" in error_of(response)["message"]
    assert "access-control-allow-origin" not in response.headers
    assert not engine.seen


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": "https://127.0.0.1:8000"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Mode": "cors"},  # of Node's fetch, which is in no page
        {"Host": "api.example", "Origin": "https://api.example", "Sec-Fetch-Site": "same-origin"},
        {"Host": "api.example", "Origin": "https://api.example:443"},
        {"Host": "api.example:443", "Origin": "https://api.example"},
        {"Host": "inner:8000", "Origin": "https://api.example", "Sec-Fetch-Site": "same-origin"},  # behind a proxy
    ],
    ids=str,
)
async def test_the_servers_own_page_and_programs_are_served(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, headers: dict[str, str]
) -> None:
    async with connected(engine, profile, fmt, host="0.0.0.0") as http:
        assert (await http.post(CHAT, json=body(), headers=headers)).status_code == 200


async def test_a_foreign_page_may_link_here_but_not_read(http: httpx.AsyncClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    for path in ("/docs", "/v1/models"):
        response = await http.get(path, headers=headers)
        assert response.status_code == 200
        assert "access-control-allow-origin" not in response.headers


async def test_a_preflight_of_a_foreign_page_is_refused(http: httpx.AsyncClient, with_page: httpx.AsyncClient) -> None:
    for client in (http, with_page):
        asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
        response = await client.options(CHAT, headers=asked)
        assert response.status_code == 403
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_a_preflight_of_an_allowed_page_is_answered(with_page: httpx.AsyncClient) -> None:
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        "Access-Control-Request-Private-Network": "true",
    }
    response = await with_page.options(CHAT, headers=asked)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
    assert response.headers["access-control-allow-private-network"] == "true"
    assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_allowed_page_reads_answers_and_streams(with_page: httpx.AsyncClient, stream: bool) -> None:
    headers = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
    response = await with_page.post(CHAT, json=body(stream=stream), headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-expose-headers"] == EXPOSED.decode()
    assert response.headers["vary"] == "Origin"


async def test_an_allowed_page_reads_errors_too(with_page: httpx.AsyncClient) -> None:
    for sent in (body(n=0), body(model="other")):
        response = await with_page.post(CHAT, json=sent, headers={"Origin": PAGE})
        assert response.status_code >= 400
        assert response.headers["access-control-allow-origin"] == PAGE


async def test_all_origins(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with connected(engine, profile, fmt, allowed_origins=("*",)) as http:
        for origin in (EVIL, "null"):
            response = await http.post(CHAT, json=body(), headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"})
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::2]:8000", "a"])
async def test_another_name_for_a_local_server_is_refused(http: httpx.AsyncClient, host: str) -> None:
    """A page's name may be made to point here (DNS rebinding); its requests are then of the server's own origin."""
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/health")):
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        response = await http.request(method, path, headers=headers)
        assert response.status_code == 403
        assert "--allowed-hosts" in error_of(response)["message"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "127.0.0.2", "[::1]:8000", "localhost."]
)
async def test_names_of_this_machine(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get("/v1/models", headers={"Host": host})).status_code == 200


async def test_hosts_that_are_allowed(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    hosts = ("api.example",)
    async with connected(engine, profile, fmt, allowed_hosts=hosts) as http:
        for host, status in (("api.example", 200), ("API.example:443", 200), ("localhost", 200), ("b.example", 403)):
            assert (await http.get("/v1/models", headers={"Host": host})).status_code == status, host
    async with connected(engine, profile, fmt, url="http://10.1.2.3", host="0.0.0.0", allowed_hosts=hosts) as http:
        for host, status in (("api.example", 200), ("10.1.2.3", 403)):
            assert (await http.get("/v1/models", headers={"Host": host})).status_code == status, host


async def test_an_address_open_to_others_goes_by_any_name(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    async with connected(engine, profile, fmt, host="0.0.0.0") as http:
        assert (await http.get("/v1/models", headers={"Host": "api.example"})).status_code == 200


def test_loopback_addresses() -> None:
    local = ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LocalHost")
    assert all(map(is_loopback, local))
    assert not any(
        map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "", "127.0.0.1.evil.example"))
    )


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("kind", [FORM, None, "text/plain"])
@pytest.mark.parametrize(
    "headers", [{"Origin": PAGE}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}], ids=str
)
async def test_a_page_has_to_say_that_it_sends_json(
    with_page: httpx.AsyncClient, kind: str | None, headers: dict[str, str]
) -> None:
    """For anything else a browser does not ask first whether the page may send it."""
    sent = {**headers, **({} if kind is None else {"Content-Type": kind})}
    response = await with_page.post(CHAT, content=b'{"messages": []}', headers=sent)
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


async def test_a_page_asks_for_what_has_no_body(with_page: httpx.AsyncClient) -> None:
    made = (
        await with_page.post("/v1/responses", json={"model": "twogear-tiny", "input": "Hi"}, headers={"Origin": PAGE})
    ).json()
    for method in ("GET", "DELETE"):
        response = await with_page.request(method, f"/v1/responses/{made['id']}", headers={"Origin": PAGE})
        assert response.status_code == 200


async def test_curl_need_not(http: httpx.AsyncClient) -> None:
    for headers in ({"Content-Type": FORM}, {}):
        content = b'{"messages": [{"role": "user", "content": "Hi"}]}'
        assert (await http.post(CHAT, content=content, headers=headers)).status_code == 200


# --- options ------------------------------------------------------------------------------------------------------


def parsed(*arguments: str) -> Settings:
    return settings_of(cli._parse("serve", serve, [*arguments]), {})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--allowed-origins", '["https://a.example", "http://localhost:3000"]'],  # as vLLM takes them
        ["--allowed-origins", "https://a.example, http://localhost:3000"],
        ["--allowed-origins", "https://a.example", "--allowed-origins=http://localhost:3000"],
    ],
)
def test_ways_to_name_origins(arguments: list[str]) -> None:
    assert parsed(*arguments).allowed_origins == ("https://a.example", "http://localhost:3000")


def test_other_origins() -> None:
    assert parsed().allowed_origins == ()
    assert parsed("--allowed-origins", "*").allowed_origins == ("*",)
    assert parsed("--allowed-origins", '["*"]').allowed_origins == ("*",)
    assert parsed("--allowed-origins", "null,vscode-webview://abc").allowed_origins == ("null", "vscode-webview://abc")
    assert parsed("--allowed-hosts", "API.example,10.0.0.1").allowed_hosts == ("api.example", "10.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--allowed-origins", "https://a.example/"], "'https://a.example/' is no origin"),
        (["--allowed-origins", "a.example"], "'a.example' is no origin"),
        (["--allowed-origins", "["], "is no JSON list of texts"),
        (["--allowed-origins", "[1]"], "is no JSON list of texts"),
        (["--allowed-origins", ""], "'' is no origin"),
        (["--allowed-hosts", "a.example:80"], "'a.example:80' is no name of a host"),
        (["--allowed-hosts", "10.0.0.1:80"], "'10.0.0.1:80' is no name of a host"),
        (["--allowed-hosts", "https://a.example"], "is no name of a host"),
        (["--root-path", "llm"], "'llm' is no path: /llm is"),
        (["--root-path", "/llm/"], "'/llm/' is no path: /llm is"),
        (["--ssl-keyfile", "key.pem"], "both --ssl-keyfile and --ssl-certfile"),
    ],
)
def test_options_that_are_wrong(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parsed(*arguments)
    assert said in str(refused.value)


@pytest.mark.parametrize("prefix", ["", "/llm"])
async def test_behind_a_proxy_that_serves_a_path(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, prefix: str
) -> None:
    """Whether the proxy takes the path away or leaves it."""
    async with connected(engine, profile, fmt, root_path="/llm") as http:
        assert (await http.get(f"{prefix}/health")).status_code == 200
        assert (await http.post(f"{prefix}{CHAT}", json=body())).status_code == 200
        document = (await http.get(f"{prefix}/openapi.json")).json()
        assert document["servers"] == [{"url": "/llm"}]


async def test_docs_can_be_switched_off(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    assert not parsed("--no-docs").docs
    async with connected(engine, profile, fmt, docs=False) as http:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert (await http.get(path)).status_code == 404
