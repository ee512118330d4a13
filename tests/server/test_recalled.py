"""Families that go on from the thinking of their tool turns: what a client left out is filled in."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import PROFILE_FOLDER, load_profile, styles_of
from server.settings import Settings
from tests.chat_templates.foreign import tokenizer_json
from tests.chat_templates.tool_forms.forms import opening, written
from tests.chat_templates.tool_forms.test_parsed import ids_of
from tests.fake_engine import FakeEngine
from tests.families.checkpoints import FAMILIES
from tests.server.test_tool_forms import QUESTION, TOOL

RECALLING = {path.stem for path in PROFILE_FOLDER.glob("*.toml") if load_profile(path).recalls_thinking}
THOUGHT = "Look it up."


def test_which_families_do() -> None:
    kimi = {"kimi_k2_thinking", "kimi_k2_5", "kimi_k3"}
    qwen = {"qwen3_5", "qwen3_8"}
    assert kimi | qwen | {"minimax_m2", "minimax_m3", "gpt_oss", "deepseek_v4", "glm4_moe", "hy3"} == RECALLING


@pytest.mark.parametrize("name", sorted((RECALLING & FAMILIES.keys()) - {"gpt_oss"}))
async def test_it_stands_in_the_next_prompt(name: str) -> None:
    family, profile = FAMILIES[name], load_profile(PROFILE_FOLDER / f"{name}.toml")
    files = TemplateFiles(family.template, None, {"eos_token": family.eos})
    checkpoint = CheckpointTemplate(files, profile.format, styles_of(profile.plain), family.added)
    fmt = ChatFormat.of_checkpoint(tokenizer_json(family.special, family.added), checkpoint)
    eos, form = fmt.vocabulary.control[family.eos], fmt.calls.form
    call = opening(form) + written(form, [("weather", {"city": "Rome"})])

    def write(prompt: list[int]) -> Iterator[int]:
        thinking = [*fmt.encode_text(THOUGHT), *fmt.close_thinking()] if fmt.is_thinking_open(prompt) else []
        return iter([*thinking, *ids_of(fmt, call), eos])

    engine = FakeEngine(write, (eos,), chunks=(3, 1, 7))
    transport = httpx.ASGITransport(create_app(engine, Settings(served_model_name="m"), profile, fmt))
    question = {"role": "user", "content": QUESTION}
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        body: dict[str, Any] = {"reasoning_mode": "reasoning", "tools": [TOOL], "max_tokens": 900}
        first = await http.post("/v1/chat/completions", json={**body, "messages": [question]})
        message = first.json()["choices"][0]["message"]
        assert message["reasoning_content"] == THOUGHT
        (made,) = message["tool_calls"]
        assert json.loads(made["function"]["arguments"]) == {"city": "Rome"}
        result = {"role": "tool", "tool_call_id": made["id"], "content": "rain"}
        turns = [question, {"role": "assistant", "content": None, "tool_calls": [made]}, result]
        await http.post("/v1/chat/completions", json={**body, "messages": turns})
    assert THOUGHT in fmt.decode(engine.seen[-1].prompt_ids, show_control=True)
