"""API keys over HTTP: who is let in, what each key may do, what it is told, and that no key is ever shown."""

import asyncio
import logging
import re
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Response

from chat_templates.format import ChatFormat
from server import cli
from server.access.keys import Key, KeyFile, KeyRing, check_modes, hash_of, keys_of, load_keys, new_secret
from server.api.common.openapi import Api
from server.api.registry import APIS
from server.app import create_app
from server.cli_errors import UsageError
from server.commands import serve
from server.commands.serve import settings_of
from server.errors import ApiError, BadRequestError, ErrorShape, JsonObject
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always, body
from tests.server.test_http import error_of

CHAT = "/v1/chat/completions"
SECRETS = {name: f"sk-{name}-secret" for name in ("anna", "prometheus", "operator", "direct", "slow")}
HASHES = {name: hash_of(secret.encode()) for name, secret in SECRETS.items()}
FILE = f"""
[[keys]]
name = "anna"
hash = "{HASHES["anna"]}"

[[keys]]
name = "prometheus"
hash = "{HASHES["prometheus"]}"
routes = ["metrics"]

[[keys]]
name = "operator"
hash = "{HASHES["operator"]}"
routes = ["models", "control", "metrics", "admin"]
priority = true

[[keys]]
name = "direct"
hash = "{HASHES["direct"]}"
routes = ["models"]
modes = ["standard"]
limits.n = 2

[[keys]]
name = "slow"
hash = "{HASHES["slow"]}"
limits = {{ requests_per_minute = 2, tokens_per_minute = 1000 }}
mode_limits.reasoning.running = 1
"""


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    return load_keys(path)


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("Hello"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


@pytest.fixture
async def app_client(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, key_file: KeyFile
) -> AsyncIterator[httpx.AsyncClient]:
    async with connected(engine, profile, fmt, key_file) as http:
        yield http


@asynccontextmanager
async def connected(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, keys: KeyFile | None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, Settings(**settings), profile, fmt, keys=keys)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        yield http


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


async def test_a_key_is_needed(app_client: httpx.AsyncClient) -> None:
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nothing")):
        response = await app_client.request(method, path)
        assert response.status_code == 401, path
        error = error_of(response)
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert "Authorization: Bearer" in error["message"]
        assert response.headers["www-authenticate"] == "Bearer"


async def test_health_and_the_docs_are_open(app_client: httpx.AsyncClient) -> None:
    for path in ("/health", "/docs", "/redoc", "/openapi.json"):
        assert (await app_client.get(path)).status_code == 200, path


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {SECRETS['anna']}"},
        {"authorization": f"bearer {SECRETS['anna']}"},
        {"x-api-key": SECRETS["anna"]},
        {"Authorization": "Basic dXNlcjpwYXNz", "x-api-key": SECRETS["anna"]},
        {"Authorization": "Bearer none", "x-api-key": SECRETS["anna"]},
    ],
)
async def test_ways_to_send_it(app_client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await app_client.post(CHAT, json=body(), headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {SECRETS['anna']}x"},
        {"Authorization": f"Bearer {SECRETS['anna'][:-1]}"},
        {"Authorization": f"Bearer {HASHES['anna']}"},
        {"Authorization": SECRETS["anna"]},
        {"Authorization": "Bearer "},
        {"Authorization": b"Bearer \xff\xfe".decode("latin-1")},
        {"x-api-key": ""},
        {"api-key": SECRETS["anna"]},
    ],
)
async def test_what_is_no_key(app_client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    response = await app_client.post(CHAT, json=body(), headers=raw)
    assert response.status_code == 401
    assert SECRETS["anna"] not in response.text


async def test_a_key_in_the_address_is_none(app_client: httpx.AsyncClient) -> None:
    """It would stand in logs and histories."""
    assert (await app_client.post(f"{CHAT}?api_key={SECRETS['anna']}", json=body())).status_code == 401


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "//metrics", "/health/../metrics", "/Health", "/health/"])
async def test_no_spelling_of_a_path_goes_round_the_gate(app_client: httpx.AsyncClient, path: str) -> None:
    response = await app_client.request("GET", f"http://twogear{path}")
    assert response.status_code == 401


async def test_routes_of_a_key(app_client: httpx.AsyncClient) -> None:
    async def status(name: str, method: str, path: str) -> int:
        return (await app_client.request(method, path, headers=bearer(name))).status_code

    assert await status("prometheus", "GET", "/metrics") == 200
    assert await status("prometheus", "GET", "/v1/models") == 403
    assert await status("prometheus", "GET", "/health") == 200
    assert await status("anna", "GET", "/metrics") == 403
    assert await status("anna", "POST", f"{CHAT}/chatcmpl-1/control") == 400, "an empty body"
    assert await status("direct", "POST", f"{CHAT}/chatcmpl-1/control") == 403
    assert await status("operator", "GET", "/metrics") == 200
    error = error_of(await app_client.get("/metrics", headers=bearer("anna")))
    assert error["code"] == "insufficient_permissions"
    assert "'anna'" in error["message"]


async def test_adapters_are_loaded_by_operators_alone(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, key_file: KeyFile
) -> None:
    async with connected(engine, profile, fmt, key_file, allow_lora_updates=True) as http:
        for path, fields in (("load", {"lora_name": "sql", "lora_path": "/a"}), ("unload", {"lora_name": "sql"})):
            url = f"/v1/{path}_lora_adapter"
            assert (await http.post(url, json=fields)).status_code == 401
            assert (await http.post(url, json=fields, headers=bearer("anna"))).status_code == 403
            assert not engine.adapters
            assert (await http.post(url, json=fields, headers=bearer("operator"))).status_code == 200
            assert bool(engine.adapters) == (path == "load")
            engine.adapters.clear()


async def test_modes_of_a_key(app_client: httpx.AsyncClient) -> None:
    sent = {"json": body(reasoning_mode="reasoning"), "headers": bearer("direct")}
    response = await app_client.post(CHAT, **sent)  # type: ignore[arg-type]
    assert response.status_code == 403
    assert "standard" in error_of(response)["message"]
    assert (await app_client.post(CHAT, json=body(), headers=bearer("direct"))).status_code == 200


async def test_choices_of_a_key(app_client: httpx.AsyncClient) -> None:
    assert (await app_client.post(CHAT, json=body(n=2), headers=bearer("direct"))).status_code == 200
    response = await app_client.post(CHAT, json=body(n=3), headers=bearer("direct"))
    assert (response.status_code, error_of(response)["param"]) == (400, "n")
    sent = {"prompt": ["a", "b", "c"], "max_tokens": 1}
    assert (await app_client.post("/v1/completions", json=sent, headers=bearer("direct"))).status_code == 400


async def test_priority_is_the_keys_to_set(app_client: httpx.AsyncClient, engine: FakeEngine) -> None:
    refused = await app_client.post(CHAT, json=body(priority=-1), headers=bearer("anna"))
    assert (refused.status_code, error_of(refused)["param"]) == (400, "priority")
    for sent in (body(), body(priority=-1)):
        assert (await app_client.post(CHAT, json=sent, headers=bearer("operator"))).status_code == 200
    assert engine.seen[-1].priority < engine.seen[-2].priority


@pytest.mark.parametrize("stream", [False, True])
async def test_a_quota_is_told_and_kept(app_client: httpx.AsyncClient, stream: bool) -> None:
    sent = {"json": body(stream=stream, max_tokens=20), "headers": bearer("slow")}
    first = await app_client.post(CHAT, **sent)  # type: ignore[arg-type]
    assert first.status_code == 200
    limits = {name: value for name, value in first.headers.items() if name.startswith("x-ratelimit-")}
    assert limits["x-ratelimit-limit-requests"] == "2"
    assert limits["x-ratelimit-remaining-requests"] == "1"
    assert limits["x-ratelimit-limit-tokens"] == "1000"
    assert 900 < int(limits["x-ratelimit-remaining-tokens"]) < 980, "20 and the prompt were laid aside"
    assert set(limits) >= {"x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"}
    assert (await app_client.post(CHAT, **sent)).status_code == 200  # type: ignore[arg-type]
    third = await app_client.post(CHAT, **sent)  # type: ignore[arg-type]
    error = error_of(third)
    assert (third.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert third.headers["x-ratelimit-remaining-requests"] == "0"


async def test_a_key_without_limits_is_told_none(app_client: httpx.AsyncClient) -> None:
    response = await app_client.post(CHAT, json=body(), headers=bearer("anna"))
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


async def test_tokens_are_settled_as_usage_tells_them(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'keys = [{{ name = "a", hash = "{HASHES["anna"]}", limits.tokens_per_minute = 100000 }}]')
    async with connected(engine, profile, fmt, load_keys(file)) as http:
        used = 0
        for mode in ("standard", "reasoning"):
            sent = body(reasoning_mode=mode, n=3, max_tokens=500)
            response = await http.post(CHAT, json=sent, headers=bearer("anna"))
            used += response.json()["usage"]["total_tokens"]
        last = await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers=bearer("anna"))
    left = int(last.headers["x-ratelimit-remaining-tokens"])
    assert 0 <= left - (100_000 - used - 2) < 60_000 / 60, "but for what came back with time, in less than a second"


async def test_thinking_is_closed_by_its_own_key_or_an_operator(
    profile: Profile, fmt: ChatFormat, key_file: KeyFile
) -> None:
    engine = FakeEngine(always(fmt.encode_text("on and on " * 200)), (fmt.end_of_turn_id,), step=_slowly)
    async with connected(engine, profile, fmt, key_file) as http:
        asked = body(reasoning_mode="reasoning", max_tokens=1000)
        running = asyncio.create_task(http.post(CHAT, json=asked, headers=bearer("anna")))
        await begun(engine)
        name = "-".join(engine.seen[0].request_id.split("-")[:2])
        control = f"{CHAT}/{name}/control", {"action": "end_reasoning"}
        other = await http.post(control[0], json=control[1], headers=bearer("slow"))
        assert (other.status_code, error_of(other)["code"]) == (404, "request_not_found")
        closed = await http.post(control[0], json=control[1], headers=bearer("operator"))
        assert closed.status_code == 200
        running.cancel()


async def _slowly() -> None:
    await asyncio.sleep(0.01)


async def begun(engine: FakeEngine) -> None:
    """Waits for the engine's first request."""
    while not engine.seen:  # noqa: ASYNC110 - the fake has no event for it
        await asyncio.sleep(0.01)


async def test_a_key_that_is_taken_away_ends_nothing_that_runs(
    profile: Profile, fmt: ChatFormat, key_file: KeyFile
) -> None:
    let_go = asyncio.Event()

    async def wait() -> None:
        await let_go.wait()

    engine = FakeEngine(always([*fmt.encode_text("Hello"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,), step=wait)
    app = create_app(engine, Settings(), profile, fmt, keys=key_file)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        running = asyncio.create_task(http.post(CHAT, json=body(), headers=bearer("slow")))
        await begun(engine)
        app.state.serving.access.replace(KeyFile(keys=key_file.keys[:1]))
        assert (await http.get("/v1/models", headers=bearer("slow"))).status_code == 401
        assert (await http.get("/v1/models", headers=bearer("anna"))).status_code == 200
        let_go.set()
        assert (await running).status_code == 200


async def test_keys_that_everyone_can_do_without(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, key_file: KeyFile
) -> None:
    opened = KeyFile(open=("metrics",), keys=key_file.keys)
    async with connected(engine, profile, fmt, opened) as http:
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.get("/metrics", headers=bearer("anna"))).status_code == 200
        assert (await http.get("/v1/models")).status_code == 401


async def test_no_key_is_in_a_log_or_an_answer(app_client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answers = [
            await app_client.post(CHAT, json=sent, headers={"Authorization": f"Bearer {secret}"})
            for secret in ("sk-wrong-secret", SECRETS["direct"])
            for sent in (body(), body(n=99), body(reasoning_mode="reasoning"))
        ]
        answers.append(await app_client.get("/metrics", headers=bearer("operator")))
        answers.append(await app_client.post(CHAT, content=b"{", headers=bearer("anna")))
    told = caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)
    assert not [secret for secret in [*SECRETS.values(), *HASHES.values(), "sk-wrong-secret"] if secret in told]


# --- where keys come from -----------------------------------------------------------------------------------------


def test_a_key_ring_finds_each_and_no_other() -> None:
    secrets = [new_secret() for _ in range(100)]
    ring = KeyRing([Key(name=f"k{i}", hash=hash_of(one.encode())) for i, one in enumerate(secrets)])
    assert [key.name for one in secrets if (key := ring.find(one.encode()))] == [f"k{i}" for i in range(100)]
    assert ring.find(new_secret().encode()) is None
    assert ring.find(b"") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is none"),
        ("keys = 5", "Expected `array`, got `int` - at `$.keys`"),
        ('[[keys]]\nname = "a"', "missing required field `hash`"),
        ('[[keys]]\nname = "a"\nhash = "sk-plain"', "$.keys[0].hash"),
        ('[[keys]]\nname = "a b"\nhash = "{0}"', "$.keys[0].name"),
        ('[[keys]]\nname = "a"\nhash = "{0}"\nkey = "x"', "unknown field `key`"),
        ('[[keys]]\nname = "a"\nhash = "{0}"\nlimits.running = 0', "Expected `int` >= 1"),
        ('[[keys]]\nname = "a"\nhash = "{0}"\nroutes = ["all"]', "Invalid enum value 'all'"),
        ('[[keys]]\nname = "a"\nhash = "{0}"\n[[keys]]\nname = "a"\nhash = "{1}"', "two have the name a"),
        ('[[keys]]\nname = "a"\nhash = "{0}"\n[[keys]]\nname = "b"\nhash = "{0}"', "two have the hash"),
        ("[[keys]", "keys in"),
        ("keys = " + "[" * 20_000, "keys in"),
    ],
)
def test_a_broken_file_is_refused_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text.replace("{0}", HASHES["anna"]).replace("{1}", HASHES["slow"]))
    with pytest.raises(UsageError) as refused:
        load_keys(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def parsed(*arguments: str, **environment: str) -> Settings:
    """The settings of `twogear serve` with these."""
    return settings_of(cli._parse("serve", serve, [*arguments]), environment)


def test_keys_of_the_environment_and_the_command_line() -> None:
    one, other = hash_of(b"one"), hash_of(b"other")
    assert parsed(TWOGEAR_API_KEY="one").api_key_hashes == (one,)
    assert parsed(VLLM_API_KEY="other").api_key_hashes == (other,)
    assert parsed(TWOGEAR_API_KEY="one", VLLM_API_KEY="other").api_key_hashes == (one, other)
    assert parsed("--api-key", "one", VLLM_API_KEY="other").api_key_hashes == (one,), "as vLLM does"
    assert parsed("--api-key", "one", "--api-key=other").api_key_hashes == (one, other)
    assert parsed().api_key_hashes == ()
    with pytest.raises(UsageError, match="--api-key is empty"):
        parsed("--api-key", "")


def test_the_environment_keeps_no_key() -> None:
    """The engine process would get it, and whatever that starts."""
    environment = {"VLLM_API_KEY": "sk-secret", "HOME": "x"}
    settings = settings_of(cli._parse("serve", serve, []), environment)
    assert environment == {"HOME": "x", "TWOGEAR_WEIGHTS": "bf16"}
    assert "sk-secret" not in repr(settings)


async def test_a_plain_key_may_do_everything_and_metrics_are_open_as_in_vllm(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    async with connected(engine, profile, fmt, keys_of(None, [HASHES["anna"]])) as http:
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.post(CHAT, json=body())).status_code == 401
        response = await http.post(CHAT, json=body(priority=5), headers=bearer("anna"))
        assert response.status_code == 200


def test_a_file_and_a_plain_key_together(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    both = keys_of(path, [hash_of(b"one"), HASHES["anna"]])
    assert both is not None
    assert [key.name for key in both.keys] == [*SECRETS, "default"]
    assert both.open == ()
    assert keys_of(None, []) is None


def test_twogear_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "new", "anna"]) == 0
    shown = capsys.readouterr().out
    (secret,) = [line for line in shown.splitlines() if line.startswith("sk-twogear-")]
    path = tmp_path / "keys.toml"
    path.write_text(shown[shown.index("[[keys]]") :])
    assert [(key.name, key.hash) for key in load_keys(path).keys] == [("anna", hash_of(secret.encode()))]
    assert cli.main(["keys", "new", "ben", "--file", str(path)]) == 0
    added = capsys.readouterr()
    assert [key.hash for key in load_keys(path).keys][1] == hash_of(added.out.strip().encode())
    assert cli.main(["keys", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path} has 2 keys: anna, ben\n"


def test_a_new_file_of_keys_is_its_owners_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    assert cli.main(["keys", "new", "anna", "--file", str(path)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["new", "a b"], "'a b' is no name of a key"),
        (["check", "/nowhere/keys.toml"], "No such file"),
        (["new", "a", "--file", "/nowhere/keys.toml"], "cannot write /nowhere/keys.toml"),
    ],
)
def test_mistakes_with_twogear_keys(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_name_is_taken_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    assert cli.main(["keys", "new", "anna", "--file", str(path)]) == 0
    before = path.read_text()
    assert cli.main(["keys", "new", "anna", "--file", str(path)]) == 2
    assert "has a key anna already" in capsys.readouterr().err
    assert path.read_text() == before


def test_the_file_that_the_docs_show_can_be_used(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "keys.md").read_text()
    (shown,) = re.findall(r"<!-- keys file -->\n```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "keys.toml"
    path.write_text(shown)
    file = load_keys(path)
    assert [key.name for key in file.keys] == ["anna", "prometheus"]
    assert file.keys[0].routes == Key(name="a", hash=file.keys[0].hash).routes, "as the page says"
    check_modes(file, ["standard", "reasoning"])


# --- the shape of errors ------------------------------------------------------------------------------------------


async def test_errors_before_the_routes_have_the_shape_of_the_api_too(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, key_file: KeyFile
) -> None:
    router = APIRouter()

    @router.post("/v2/{name}/ask")
    async def ask(name: str) -> Response:
        raise BadRequestError(f"no {name}", param="name")

    def told(error: ApiError, _request_id: str) -> JsonObject:
        return {"type": "error", "status": int(error.status), "said": error.message}

    shape = ErrorShape("/v2/", "x-own-shape", told)
    api = Api(router=router, answers=(), access={"/v2/{name}/ask": "control"}, errors=shape)
    app = create_app(engine, Settings(), profile, fmt, (*APIS, api), keys=key_file)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        for method, headers, status in (
            ("POST", {}, 401),
            ("POST", bearer("direct"), 403),
            ("POST", bearer("anna"), 400),
            ("GET", bearer("anna"), 405),
        ):
            response = await http.request(method, "/v2/x/ask", headers=headers)
            assert response.status_code == status
            assert response.json()["type"] == "error"
            assert response.json()["status"] == status
        assert error_of(await http.post(CHAT, json=body()))["code"] == "invalid_api_key"
