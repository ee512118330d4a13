"""The page's files over HTTP: policy, caching, packing, who may have them, and a server without a page."""

import gzip
import re

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.access.keys import Key, KeyFile, hash_of
from server.app import create_app
from server.http.page import PAGE_FOLDER
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always

INDEX = (PAGE_FOLDER / "index.html").read_bytes()
SCRIPT = next((PAGE_FOLDER / "assets").glob("index-*.js"))


def connected(
    profile: Profile, fmt: ChatFormat, keys: KeyFile | None = None, root: str = "", *, ui: bool = True
) -> httpx.AsyncClient:
    engine = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    app = create_app(engine, Settings(ui=ui, root_path=root), profile, fmt, keys=keys)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


@pytest.mark.asyncio
async def test_the_page_and_what_it_loads(profile: Profile, fmt: ChatFormat) -> None:
    async with connected(profile, fmt) as http:
        page = await http.get("/")
        assert page.content == INDEX
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        for path in re.findall(r'(?:src|href)="\./(assets/[^"]+)"', page.text):
            loaded = await http.get(f"/{path}")
            assert loaded.status_code == 200
            assert loaded.content == (PAGE_FOLDER / path).read_bytes()
            assert "immutable" in loaded.headers["cache-control"]
        assert (await http.head("/")).status_code == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/", f"/assets/{SCRIPT.name}"])
async def test_the_policy_allows_nothing_inline_and_no_other_host(profile: Profile, fmt: ChatFormat, path: str) -> None:
    async with connected(profile, fmt) as http:
        headers = (await http.get(path)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert {word for part in policy.split("; ") for word in part.split()[1:]} == {
        "'none'", "'self'", "'script'", "dompurify",
    }  # fmt: skip
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.asyncio
async def test_a_browser_that_has_it_gets_it_not_again(profile: Profile, fmt: ChatFormat) -> None:
    async with connected(profile, fmt) as http:
        first = await http.get("/")
        again = await http.get("/", headers={"If-None-Match": first.headers["etag"]})
        other = await http.get("/", headers={"If-None-Match": 'W/"other"'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert other.status_code == 200


@pytest.mark.asyncio
async def test_it_is_packed_for_those_who_can_unpack(profile: Profile, fmt: ChatFormat) -> None:
    async with connected(profile, fmt) as http:
        async with http.stream("GET", f"/assets/{SCRIPT.name}", headers={"Accept-Encoding": "gzip"}) as response:
            packed = b"".join([part async for part in response.aiter_raw()])
        plain = await http.get(f"/assets/{SCRIPT.name}", headers={"Accept-Encoding": "identity"})
    assert gzip.decompress(packed) == plain.content == SCRIPT.read_bytes()
    assert "content-encoding" not in plain.headers


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["none.js", "..%2findex.html", "%2e%2e%2fapp.py", ""])
async def test_nothing_else_is_given_out(profile: Profile, fmt: ChatFormat, name: str) -> None:
    async with connected(profile, fmt) as http:
        assert (await http.get(f"/assets/{name}")).status_code == 404


@pytest.mark.asyncio
async def test_the_files_need_no_key(profile: Profile, fmt: ChatFormat) -> None:
    keys = KeyFile(keys=(Key(name="one", hash=hash_of(b"sk-one")),))
    async with connected(profile, fmt, keys) as http:
        assert (await http.get("/")).status_code == 200
        assert (await http.get(f"/assets/{SCRIPT.name}")).status_code == 200
        assert (await http.get("/v1/models")).status_code == 401


@pytest.mark.asyncio
async def test_under_the_path_of_a_proxy(profile: Profile, fmt: ChatFormat) -> None:
    async with connected(profile, fmt, root="/llm") as http:
        assert (await http.get("/llm/")).content == INDEX
        assert (await http.get(f"/llm/assets/{SCRIPT.name}")).status_code == 200


@pytest.mark.asyncio
async def test_a_server_without_a_page(profile: Profile, fmt: ChatFormat) -> None:
    async with connected(profile, fmt, ui=False) as http:
        assert (await http.get("/")).status_code == 404
        assert (await http.get(f"/assets/{SCRIPT.name}")).status_code == 404


@pytest.mark.asyncio
async def test_the_openapi_document_and_the_list_of_routes_leave_it_out(profile: Profile, fmt: ChatFormat) -> None:
    async with connected(profile, fmt) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
        missing = (await http.get("/nothing")).json()["error"]["message"]
    assert not [path for path in paths if path == "/" or path.startswith("/assets")]
    assert "/assets" not in missing
