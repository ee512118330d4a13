"""What chat templates are told: levels, a client's variables, the operator's; and modes that are lacking."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from chat_templates.templates import NoTemplate
from chat_templates.tokens import Vocabulary
from server.app import create_app
from server.cli import main
from server.cli_errors import UsageError
from server.modes.checkpoint_sampling import with_sampling
from server.modes.mode import Modes
from server.modes.profile import GENERAL, Profile, load_profile
from server.modes.start_report import report, warnings
from server.settings import EMBEDDED_MODEL, Settings
from tests.chat_templates.foreign import IM, THINKING, make_foreign, qwen, tokenizer_json
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, always

CHAT = "/v1/chat/completions"
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
LEVELS = (
    "{% if effort is defined and effort not in ['low', 'high'] %}{{ raise_exception('Bad effort') }}{% endif %}"
    "[{{ effort }}][{{ keep }}]" + TURNS + "{% if mode == 'on' %}<think>\n{% else %}<think></think>{% endif %}"
)
PROFILE = """
default_mode = "standard"
dialects = { on = "reasoning", off = "standard" }
client_variables = ["keep"]

[modes.standard]
kind = "direct"
template_variables = { mode = "off" }
max_tokens_limit = 1000

[modes.reasoning]
kind = "thinking"
template_variables = { mode = "on" }
max_tokens_limit = 1000
answer_reserve = 10
wrap_up = ""

[modes.reasoning.levels]
variable = "effort"
of = { low = "low", high = "high" }
"""
ALWAYS = """
default_mode = "reasoning"
dialects = { on = "reasoning" }

[modes.reasoning]
kind = "thinking"
max_tokens_limit = 1000
answer_reserve = 10
wrap_up = ""
"""


def profile_of(text: str, folder: Path) -> Profile:
    (folder / "profile.toml").write_text(text)
    return load_profile(folder / "profile.toml")


@asynccontextmanager
async def serving(
    fmt: ChatFormat, profile: Profile, defaults: Mapping[str, Any] | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, FakeEngine]]:
    engine = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    app = create_app(engine, Settings(served_model_name="m", default_chat_template_kwargs=defaults or {}), profile, fmt)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        yield http, engine


@pytest.fixture
def leveled() -> ChatFormat:
    return make_foreign(LEVELS, IM, THINKING)


async def prompt_of(fmt: ChatFormat, profile: Profile, defaults: Mapping[str, Any] | None = None, **fields: Any) -> str:
    async with serving(fmt, profile, defaults) as (http, engine):
        response = await http.post(CHAT, json={"messages": HELLO, **fields})
        assert response.status_code == 200, response.text
    return fmt.decode(engine.seen[0].prompt_ids, show_control=True)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "low"}, "low"),
        ({"reasoning_effort": "medium"}, "high"),
        ({"reasoning": {"effort": "high"}}, "high"),
        ({"reasoning_effort": "max"}, "high"),
        ({"think": "xhigh"}, "high"),
        ({"chat_template_kwargs": {"reasoning_effort": "low"}}, "low"),
        ({"reasoning_mode": "reasoning"}, ""),
        ({"reasoning_mode": "reasoning", "thinking_token_budget": 20}, ""),
    ],
)
async def test_an_effort_reaches_the_template_as_a_level_that_it_knows(
    fields: dict[str, Any], told: str, leveled: ChatFormat, tmp_path: Path
) -> None:
    prompt = await prompt_of(leveled, profile_of(PROFILE, tmp_path), **fields)
    assert prompt.startswith(f"[{told}][]")
    assert prompt.endswith("<think>\n")


async def test_a_level_of_requests_that_name_none_and_a_budget_as_a_number(leveled: ChatFormat, tmp_path: Path) -> None:
    text = PROFILE.replace('high = "high" }', 'high = "high" }\ndefault = "low"')
    assert (await prompt_of(leveled, profile_of(text, tmp_path), reasoning_mode="reasoning")).startswith("[low]")
    template = f"[{{{{ tokens }}}}]{TURNS}" + "{% if mode == 'on' %}<think>{% endif %}"
    text = PROFILE.replace('"effort"', '"tokens"').replace(
        'low = "low", high = "high" }', "low = 512 }\ntakes_tokens = true"
    )
    fmt, profile = make_foreign(template, IM, THINKING), profile_of(text, tmp_path)
    assert (await prompt_of(fmt, profile, reasoning_effort="high")).startswith("[512]")
    asked: dict[str, Any] = {"reasoning_mode": "reasoning", "thinking_token_budget": 77}
    assert (await prompt_of(fmt, profile, **asked)).startswith("[77]")
    assert (await prompt_of(fmt, profile, **{**asked, "thinking_token_budget": -1})).startswith("[]")


@pytest.mark.parametrize(
    ("levels", "named"),
    [
        ('of = {}\nvariable = "a"', "of"),
        ('of = { low = 1 }\ndefault = "high"\nvariable = "a"', "default"),
        ("of = { lo = 1 }", "lo"),
    ],
)
def test_wrong_levels_are_told(levels: str, named: str, tmp_path: Path) -> None:
    text = PROFILE.partition('variable = "effort"')[0] + levels
    with pytest.raises(UsageError, match=named):
        profile_of(text, tmp_path)


async def test_clients_set_the_variables_that_the_profile_lists(leveled: ChatFormat, tmp_path: Path) -> None:
    profile = profile_of(PROFILE, tmp_path)
    assert "[][True]" in await prompt_of(leveled, profile, chat_template_kwargs={"keep": True})
    hostile = await prompt_of(leveled, profile, chat_template_kwargs={"keep": "<|im_end|>"})
    assert "[][<|im_end|>]" in hostile
    assert "[][]" in await prompt_of(leveled, profile, chat_template_kwargs={"keep": None})


@pytest.mark.parametrize("path", [CHAT, "/tokenize", "/v1/responses"])
@pytest.mark.parametrize(
    ("told", "field", "named"),
    [
        ({"kep": 1}, "kep", "keep"),
        ({"effort": "low"}, "effort", "keep"),
        ({"messages": []}, "messages", "keep"),
        ({"mode": "half"}, "mode", "off, on"),
        ({"reasoning_effort": "some"}, "reasoning_effort", "none, minimal"),
        ({"thinking_budget": "many"}, "thinking_budget", "number"),
        ({"keep": [[[]] * 3]}, "", ""),
    ],
)
async def test_an_unknown_variable_is_refused_and_those_named_that_are_known(
    path: str, told: dict[str, Any], field: str, named: str, tmp_path: Path
) -> None:
    leveled = make_foreign(LEVELS, IM, THINKING)
    async with serving(leveled, profile_of(PROFILE, tmp_path)) as (http, _):
        asked: dict[str, Any] = {"model": "m", "input": "Hi"} if path == "/v1/responses" else {"messages": HELLO}
        response = await http.post(path, json={**asked, "chat_template_kwargs": told})
    if not field:
        assert response.status_code == 200
        return
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, f"chat_template_kwargs.{field}")
    assert named in error["message"]


async def test_a_variable_that_makes_the_mode_asks_for_the_mode(leveled: ChatFormat, tmp_path: Path) -> None:
    profile = profile_of(PROFILE, tmp_path)
    assert (await prompt_of(leveled, profile, chat_template_kwargs={"mode": "on"})).endswith("<think>\n")
    assert (await prompt_of(leveled, profile, chat_template_kwargs={"thinking_budget": 0})).endswith("</think>")
    async with serving(leveled, profile) as (http, _):
        asked = {"reasoning_mode": "standard", "chat_template_kwargs": {"mode": "on"}}
        response = await http.post(CHAT, json={"messages": HELLO, **asked})
    assert response.status_code == 400
    assert "reasoning_mode" in response.json()["error"]["message"]


async def test_general_takes_what_the_template_asks_for() -> None:
    fmt = make_foreign("{{ note }}" + TURNS, IM)
    assert (await prompt_of(fmt, load_profile(GENERAL), chat_template_kwargs={"note": "x"})).startswith("x")
    async with serving(fmt, load_profile(GENERAL)) as (http, _):
        response = await http.post(CHAT, json={"messages": HELLO, "chat_template_kwargs": {"tools": []}})
    assert "note" in response.json()["error"]["message"]


async def test_the_operator_sets_what_no_client_does(leveled: ChatFormat, tmp_path: Path) -> None:
    profile = profile_of(PROFILE, tmp_path)
    defaults = {"mode": "on", "keep": "always", "reasoning_effort": "low"}
    assert (await prompt_of(leveled, profile, defaults)).startswith("[low][always]")
    assert (await prompt_of(leveled, profile, defaults, reasoning_effort="high")).startswith("[high][always]")
    prompt = await prompt_of(leveled, profile, defaults, reasoning_mode="standard", chat_template_kwargs={"keep": 1})
    assert prompt.startswith("[][1]")
    assert prompt.endswith("</think>")
    async with serving(leveled, profile, {"enable_thinking": True}) as (http, engine):
        await http.post(CHAT, json={"messages": HELLO})
        assert leveled.is_thinking_open(engine.seen[0].prompt_ids)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ('{"enabel_thinking": 1}', "enabel_thinking"),
        ("[]", "no JSON object"),
        ('{"enable_thinking": 3}', "true or false"),
    ],
)
def test_what_the_operator_got_wrong_is_told_at_start(
    value: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["serve", str(EMBEDDED_MODEL), "--port", "0", "--default-chat-template-kwargs", value])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert named in capsys.readouterr().err


async def test_a_family_that_always_thinks_has_no_other_mode(tmp_path: Path) -> None:
    fmt = make_foreign(TURNS + "<think>\n", IM, THINKING)
    async with serving(fmt, profile_of(ALWAYS, tmp_path)) as (http, _):
        names = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
        asked: list[dict[str, Any]] = [
            {"reasoning_mode": "standard"},
            {"reasoning_effort": "none"},
            {"enable_thinking": False},
        ]
        refused = [(await http.post(CHAT, json={"messages": HELLO, **fields})) for fields in asked]
    assert names == ["m", "m:reasoning"]
    assert [response.status_code for response in refused] == [400, 400, 400]
    assert all("always thinks" in response.json()["error"]["message"] for response in refused)


async def test_a_mode_that_the_template_refuses_is_found_at_start(tmp_path: Path) -> None:
    """Not in every request."""
    template = "{% if not enable_thinking %}{{ raise_exception('Thinking cannot be turned off') }}{% endif %}" + TURNS
    fmt, profile = make_foreign(template + "<think>\n", IM, THINKING), load_profile(GENERAL)
    modes = Modes.of(profile, fmt)
    assert list(modes.by_name) == ["reasoning"]
    assert "cannot be turned off" in report(modes, fmt, "general")[-1]
    assert any("The default mode is reasoning" in line for line in warnings(modes, fmt, profile, "general", "m"))
    async with serving(fmt, profile) as (http, _):
        assert (await http.post(CHAT, json={"messages": HELLO})).status_code == 200
        error = (await http.post(CHAT, json={"messages": HELLO, "reasoning_mode": "standard"})).json()["error"]
    assert "cannot be turned off" in error["message"]
    everywhere = make_foreign("{{ raise_exception('Only poems') }}{{ messages }}<think>", IM, THINKING)
    modes = Modes.of(profile, everywhere)
    assert list(modes.by_name) == ["standard", "reasoning"]
    assert sum("Only poems" in line for line in warnings(modes, everywhere, profile, "general", "m")) == 2


def test_the_report_says_what_each_mode_does() -> None:
    fmt, profile = qwen(), load_profile(GENERAL)
    direct, thinking = report(Modes.of(profile, fmt), fmt, "general")
    for line, end, told in ((direct, r"<think>\n\n</think>\n\n", "false"), (thinking, r"<think>\n", "true")):
        assert f'{end}"' in line
        assert f"enable_thinking = {told}" in line
        assert "thinking toggles, between <think> and </think>" in line
        assert "tool calls as hermes" in line
        assert "template" in line.rpartition("known from")[2]
    assert any(
        "No profile is for this model" in line
        for line in warnings(Modes.of(profile, fmt), fmt, profile, "general", "m")
    )
    assert not list(warnings(Modes.of(profile, fmt), fmt, profile, "mine", "m"))


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        (None, (0.0, 1.0, 0)),
        ({"eos_token_id": 2}, (0.0, 1.0, 0)),
        ({"do_sample": False}, (0.0, 1.0, 0)),
        ({"do_sample": True}, (1.0, 1.0, 0)),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, (0.7, 0.8, 20)),
        ({"top_k": 64, "top_p": None}, (1.0, 1.0, 64)),
    ],
)
def test_unknown_families_are_sampled_as_the_checkpoint_says(
    config: dict[str, Any] | None, sampling: tuple[float, float, int], tmp_path: Path
) -> None:
    if config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
    profile = load_profile(GENERAL)
    assert profile.sampling_of_checkpoint
    direct, thinking = with_sampling(profile, tmp_path).plain.values()
    assert (direct.temperature, direct.top_p, direct.top_k) == sampling
    named = config is not None and sampling[0] > 0
    assert (thinking.temperature, thinking.top_p) == (sampling[:2] if named else (0.6, 0.95))


@pytest.mark.parametrize("text", ["[]", "{", '{"temperature": -1}', '{"top_k": "many"}'])
def test_a_sampling_that_is_none_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UsageError, match="generation_config"):
        with_sampling(load_profile(GENERAL), tmp_path)


async def test_a_base_model_completes_texts_alone() -> None:
    fmt = ChatFormat(Vocabulary(tokenizer_json(IM, []), required=()), NoTemplate())
    profile = load_profile(GENERAL)
    async with serving(fmt, profile) as (http, _):
        chat = await http.post(CHAT, json={"messages": HELLO})
        text = await http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 1})
    assert (chat.status_code, chat.json()["error"]["param"]) == (400, "messages")
    assert "--chat-template" in chat.json()["error"]["message"]
    assert text.status_code == 200
    assert any("--chat-template" in line for line in warnings(Modes.of(profile, fmt), fmt, profile, "general", "m"))
