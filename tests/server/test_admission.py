"""The core refuses a request in the words of the API that was asked: no neutral name of a field is left in an error."""

from typing import Any

import pytest
from msgspec.structs import replace

from chat_templates.format import ChatFormat
from server.core.admission import admit
from server.core.request import Conversation, JsonForm, NamedTool, Request, Shown, Stop, Texts, TokenPrompts, ToolUse
from server.core.serving import Serving
from server.errors import BadRequestError, UnknownModelError
from server.modes.profile import Profile
from server.modes.thinking import Budget, ModeRequest, ModeWish
from server.settings import Settings
from tests.fake_engine import FakeEngine

HI = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
NAMES = {
    "model": "engine.name",
    "messages": "dialogue",
    "prompt": "beginning",
    "tools": "abilities",
    "tool_choice": "ability",
    "tool_choice.name": "ability.which",
    "max_tokens": "longest",
    "min_tokens": "shortest",
    "ignore_eos": "endless",
    "stop_token_ids": "ends",
    "logit_bias": "leanings",
    "priority": "rank",
}
PLAIN_WORDS = ("model", "priority")  # in "the model has no such token" and "--allow-priority" they name no field
ASKED = Request(id="x", prompt=Conversation([HI]), names=NAMES)


@pytest.fixture
def serving(fmt: ChatFormat, profile: Profile) -> Serving:
    engine = FakeEngine(lambda _prompt: iter(()), (fmt.end_of_turn_id,))
    return Serving(settings=Settings(), profile=profile, fmt=fmt, engine=engine)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": Conversation([HI, {"role": "robot"}])}, "dialogue[1].role"),
        ({"prompt": Conversation([HI, {"role": "user", "content": 5}])}, "dialogue[1].content"),
        ({"prompt": Conversation([HI], [{"type": "function"}])}, "abilities[0].function"),
        (
            {"prompt": Conversation([HI], [{"type": "function", "function": {"name": "a b"}}])},
            "abilities[0].function.name",
        ),
        ({"tool_use": ToolUse("required")}, "ability"),
        ({"prompt": Conversation([HI], [TOOL]), "tool_use": ToolUse(NamedTool("g"))}, "ability.which"),
        ({"max_tokens": 10**6}, "longest"),
        ({"max_tokens": 4096}, "dialogue"),
        ({"prompt": Texts(["x " * 5000])}, "beginning"),
        ({"prompt": TokenPrompts([[1, 10**9]])}, "beginning"),
        ({"prompt": TokenPrompts([[]])}, "beginning"),
        ({"max_tokens": 5, "stop": Stop(min_tokens=6)}, "shortest"),
        ({"stop": Stop(token_ids=(10**9,))}, "ends"),
        ({"logit_bias": {10**9: 1.0}}, "leanings"),
        ({"forms": [JsonForm("shape", {"type": "object"})], "stop": Stop(ignore_eos=True)}, "endless"),
        ({"forms": [JsonForm("shape", "{")]}, "shape"),
        ({"forms": [JsonForm("shape.a", {}), JsonForm("form.b", {})]}, "form"),
        ({"priority": 3}, "rank"),
        ({"mode": ModeWish([ModeRequest("gear", "fifth")])}, "gear"),
        ({"mode": ModeWish(budgets=[Budget("most", 3), Budget("effort", "low")])}, "effort"),
    ],
)
async def test_an_error_names_the_field_of_the_api(serving: Serving, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        await admit(replace(ASKED, **fields), serving)
    assert caught.value.param == param
    assert not [name for name in NAMES if name in caught.value.message and name not in PLAIN_WORDS]


async def test_so_does_an_unknown_model(serving: Serving) -> None:
    with pytest.raises(UnknownModelError) as caught:
        await admit(replace(ASKED, model="other"), serving)
    assert caught.value.param == "engine.name"


async def test_what_the_api_leaves_open_is_the_modes(serving: Serving, fmt: ChatFormat) -> None:
    plan = await admit(replace(ASKED, n=2, seed=7, shown=Shown(logprobs=1), sampling={"top_p": 0.5}), serving)
    first, second = plan.choices
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.max_tokens) == (0.0, 0.5, 256)
    assert (first.sampling.seed, second.sampling.seed, first.sampling.logprobs) == (7, 8, 1)
    assert first.prompt_ids is second.prompt_ids
    assert plan.prompt_tokens == len(first.prompt_ids)
    assert (plan.mode, plan.is_conversation, plan.shows_thinking) == ("standard", True, False)
