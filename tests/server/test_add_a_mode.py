"""`docs/add-a-mode.md`, followed word by word: its files are made as it says, and what it promises is there."""

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.model_files import load_format
from server.modes.profile import load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.fake_engine import FakeEngine, script_of
from tests.real_server import RealServer
from tests.server.conftest import HELLO, MODEL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-mode.md").read_text()
FILES = dict(re.findall(r"```(?:toml|jinja) (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
CHAT = "/v1/chat/completions"
ALL = ["standard", "reasoning", "deep", "brief"]


@pytest.fixture(scope="module")
def profile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile and the template, made by the page's first three steps."""
    folder = tmp_path_factory.mktemp("mode")
    copy, source, target = COMMANDS[0].split()
    assert copy == "cp"
    shutil.copy(ROOT / source, folder / target)
    with (folder / "mine.toml").open("a") as profile:
        profile.write("\n" + FILES["mine.toml"])
    (folder / "deep.jinja").write_text(FILES["deep.jinja"])
    return folder / "mine.toml"


@pytest.fixture(scope="module")
def deep_fmt(profile_file: Path) -> ChatFormat:
    return load_format(EMBEDDED_MODEL, load_profile(profile_file), Settings())


@pytest.fixture
def engine(deep_fmt: ChatFormat) -> FakeEngine:
    """Thinks for ever, and answers "so" once its thinking is closed."""

    def script(prompt: list[int]) -> Any:
        if deep_fmt.is_thinking_open(prompt):
            return script_of(deep_fmt.encode_text(" and"), len(prompt))(prompt)
        return iter([*deep_fmt.encode_text("so"), deep_fmt.end_of_turn_id])

    return FakeEngine(script, (deep_fmt.end_of_turn_id,))


@pytest.fixture
async def http(engine: FakeEngine, profile_file: Path, deep_fmt: ChatFormat) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, Settings(), load_profile(profile_file), deep_fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as client:
        yield client


async def ask(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post(CHAT, json={"messages": HELLO, **fields})
    body: dict[str, Any] = response.json()
    return body


async def test_the_prompt_is_the_modes_own(http: httpx.AsyncClient, engine: FakeEngine, deep_fmt: ChatFormat) -> None:
    prompts = {}
    for mode in ALL:
        engine.seen.clear()
        await ask(http, reasoning_mode=mode, max_tokens=40)
        prompts[mode] = deep_fmt.decode(engine.seen[0].prompt_ids, show_control=True)
    assert prompts["deep"] == "[|system|]\nTake care.[|endofturn|]\n" + prompts["reasoning"]
    assert prompts["brief"] == prompts["standard"]  # it has no template of its own


async def test_sampling_limits_budget_and_priority_are_the_modes_own(
    http: httpx.AsyncClient, engine: FakeEngine, deep_fmt: ChatFormat
) -> None:
    body = await ask(http, reasoning_mode="deep")
    thinking, answer = engine.seen
    assert (thinking.sampling.temperature, thinking.sampling.top_p) == (0.8, 0.9)
    assert thinking.priority == 3 * 5 + 2  # of requests with equal priority, those that think go last
    assert (answer.sampling.temperature, answer.sampling.top_p) == (0.0, 1.0)
    said = deep_fmt.decode(answer.prompt_ids, show_control=True)
    assert said.endswith("and\n\nThat is enough.\n</think>\n\n")
    (choice,) = body["choices"]
    assert (choice["message"]["content"], choice["reasoning_finish_reason"]) == ("so", "budget")
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 120
    await ask(http, reasoning_mode="brief")
    assert (engine.seen[-1].sampling.temperature, engine.seen[-1].sampling.max_tokens) == (0.2, 12)


@pytest.mark.parametrize(("mode", "limit"), [("deep", 4000), ("brief", 64)])
async def test_the_most_that_a_client_may_ask_for(http: httpx.AsyncClient, mode: str, limit: int) -> None:
    error = (await ask(http, reasoning_mode=mode, max_tokens=limit + 1))["error"]
    assert error["param"] == "max_tokens"
    assert str(limit) in error["message"]


async def test_aliases_and_models(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    listed = (await http.get("/v1/models")).json()["data"]
    kinds = {entry["id"]: (entry["reasoning_mode"], entry["kind"]) for entry in listed}
    assert kinds == {
        MODEL: ("standard", "direct"), f"{MODEL}:standard": ("standard", "direct"),
        f"{MODEL}:reasoning": ("reasoning", "thinking"), f"{MODEL}:deep": ("deep", "thinking"),
        f"{MODEL}:brief": ("brief", "direct"),
    }  # fmt: skip
    await ask(http, model=f"{MODEL}:deep")
    assert engine.seen[0].sampling.temperature == 0.8


async def test_an_unknown_modes_error_names_all(http: httpx.AsyncClient) -> None:
    error = (await ask(http, reasoning_mode="fast"))["error"]
    assert error["param"] == "reasoning_mode"
    assert '"standard", "reasoning", "deep" or "brief"' in error["message"]


async def test_metrics_count_each_mode_apart(http: httpx.AsyncClient) -> None:
    await ask(http, reasoning_mode="deep")
    await ask(http, reasoning_mode="brief")
    lines = (await http.get("/metrics")).text.splitlines()
    (promised,) = re.findall(r"`(twogear_requests_total\{.*\})`", PAGE)
    assert f"{promised} 1.0" in lines
    assert f"{promised.replace('deep', 'brief')} 1.0" in lines
    assert 'twogear_tokens_total{kind="reasoning",mode="deep"} 120.0' in lines


async def test_the_openapi_document_has_them(http: httpx.AsyncClient) -> None:
    schemas = (await http.get("/openapi.json")).json()["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["reasoning_mode"]["anyOf"][0]["enum"] == ALL


async def test_a_switch_and_a_name_of_the_same_kind_agree(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = await ask(http, reasoning_mode="deep", reasoning_effort="low", max_tokens=100)
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 20
    assert engine.seen[0].sampling.temperature == 0.8
    error = (await ask(http, reasoning_mode="deep", reasoning_effort="none"))["error"]
    assert "reasoning_mode" in error["message"]
    assert "reasoning_effort" in error["message"]


@pytest.mark.engine
def test_the_page_with_a_real_server(profile_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, served, option, file = COMMANDS[1].split()
    assert (command, served, option) == ("twogear", "serve", "--profile")
    monkeypatch.chdir(profile_file.parent)
    with RealServer(option, file) as server:
        shell = COMMANDS[2].replace("http://127.0.0.1:8000", server.url).replace("}'\ncurl", "}'; echo\ncurl")
        lines = subprocess.run(["sh", "-c", shell], capture_output=True, check=True, text=True).stdout.splitlines()
        deep, brief = (json.loads(line)["choices"][0] for line in lines)
        assert deep["message"]["reasoning_content"]
        assert deep["message"]["content"]
        assert "reasoning_content" not in brief["message"]
        assert brief["message"]["content"]
