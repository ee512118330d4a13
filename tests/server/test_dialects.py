"""Every dialect means one of the two modes and at most one budget; those that disagree are both named."""

from itertools import pairwise
from typing import Any

import orjson
import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import THINKING
from server.api.chat.body import read_chat_request
from server.api.common.thinking import mode_wish
from server.errors import BadRequestError
from server.modes.limits import budget_tokens, the_budget
from server.modes.mode import Modes
from server.modes.profile import Profile
from server.modes.resolve import resolve_mode
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, MODEL, Client, always, body
from tests.styles import thinking_of

CHAT = "/v1/chat/completions"
EFFORTS = ("minimal", "low", "medium", "high", "xhigh")


def tokens_and_mode(profile: Profile, fmt: ChatFormat, limit: int, **fields: Any) -> tuple[str, int | None]:
    """What the fields mean for a request that may generate `limit` tokens."""
    wish = mode_wish(read_chat_request(orjson.dumps(body(**fields))))
    tokens = budget_tokens(the_budget(wish.budgets), thinking_of(profile), limit)
    return resolve_mode(wish.requests, Modes.of(profile, fmt)).name, tokens


@pytest.mark.parametrize(
    ("fields", "mode", "budget"),
    [
        ({}, "standard", None),
        ({"reasoning": {}}, "standard", None),
        ({"reasoning": {"exclude": True}}, "standard", None),
        ({"chat_template_kwargs": {}}, "standard", None),
        ({"chat_template_kwargs": {"other": 1}}, "standard", None),
        ({"reasoning_effort": "none"}, "standard", None),
        ({"reasoning": {"enabled": False}}, "standard", None),
        ({"reasoning": {"effort": "none"}}, "standard", None),
        ({"thinking": {"type": "disabled"}}, "standard", None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "standard", None),
        (
            {"reasoning_effort": "none", "reasoning_mode": "standard", "thinking": {"type": "disabled"}},
            "standard",
            None,
        ),
        ({"reasoning_effort": "high"}, "reasoning", 800),
        ({"reasoning": {"enabled": True}}, "reasoning", None),
        ({"reasoning": {"effort": "low"}}, "reasoning", 200),
        ({"reasoning": {"max_tokens": 70}}, "reasoning", 70),
        ({"thinking": {"type": "enabled"}}, "reasoning", None),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "reasoning", 0),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "reasoning", None),
        ({"chat_template_kwargs": {"thinking": True}}, "reasoning", None),
        ({"reasoning_effort": "low", "reasoning": {"effort": "low", "enabled": True}}, "reasoning", 200),
        ({"thinking_token_budget": 9, "reasoning": {"max_tokens": 9}}, "reasoning", 9),
        ({"thinking_token_budget": 9, "reasoning_effort": "none"}, "standard", 9),
    ],
)
def test_what_a_dialect_means(
    profile: Profile, fmt: ChatFormat, fields: dict[str, Any], mode: str, budget: int | None
) -> None:
    assert tokens_and_mode(profile, fmt, 1000, **fields) == (mode, budget)


def test_more_effort_is_a_larger_share_of_any_limit(profile: Profile, fmt: ChatFormat) -> None:
    for limit in (100, 64_000):
        budgets = [tokens_and_mode(profile, fmt, limit, reasoning_effort=effort)[1] or 0 for effort in EFFORTS]
        assert all(less < more for less, more in pairwise([0, *budgets, limit]))


@pytest.mark.parametrize(
    ("fields", "first", "second"),
    [
        ({"reasoning_mode": "standard", "reasoning_effort": "low"}, "reasoning_mode", "reasoning_effort"),
        ({"reasoning_effort": "none", "thinking": {"type": "enabled"}}, "reasoning_effort", "thinking.type"),
        ({"reasoning": {"enabled": False, "effort": "low"}}, "reasoning.enabled", "reasoning.effort"),
        ({"reasoning": {"enabled": False, "max_tokens": 4}}, "reasoning.enabled", "reasoning.max_tokens"),
        ({"thinking": {"type": "disabled", "budget_tokens": 4}}, "thinking.type", "thinking.budget_tokens"),
        ({"model": f"{MODEL}:standard", "reasoning": {"enabled": True}}, "model", "reasoning.enabled"),
        (
            {"reasoning_mode": "reasoning", "chat_template_kwargs": {"enable_thinking": False}},
            "reasoning_mode",
            "chat_template_kwargs.enable_thinking",
        ),
        ({"reasoning": {"effort": "low", "max_tokens": 4}}, "reasoning.effort", "reasoning.max_tokens"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning_effort", "reasoning.effort"),
        ({"thinking_token_budget": 3, "reasoning_effort": "high"}, "thinking_token_budget", "reasoning_effort"),
        (
            {"thinking_token_budget": 3, "thinking": {"type": "enabled", "budget_tokens": 4}},
            "thinking_token_budget",
            "thinking.budget_tokens",
        ),
    ],
)
async def test_contradictions_name_both_fields(
    client: Client, fmt: ChatFormat, fields: dict[str, Any], first: str, second: str
) -> None:
    engine = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, second)
    assert first in error["message"]
    assert second in error["message"]
    assert not engine.seen


def test_an_unknown_mode_is_refused_before_contradictions(profile: Profile, fmt: ChatFormat) -> None:
    with pytest.raises(BadRequestError, match='"standard" or "reasoning"'):
        tokens_and_mode(profile, fmt, 100, reasoning_mode="deep", reasoning_effort="none")


@pytest.mark.parametrize("stream", [False, True])
async def test_excluded_thinking_is_counted_but_not_shown(client: Client, fmt: ChatFormat, stream: bool) -> None:
    ids = [*fmt.encode_text("let me see"), *fmt.close_thinking(), *fmt.encode_text("forty"), fmt.end_of_turn_id]
    engine = FakeEngine(always(ids), (fmt.end_of_turn_id,))
    asked = body(reasoning={"effort": "medium", "exclude": True}, max_tokens=200, stream=stream)
    if stream:
        asked["stream_options"] = {"include_usage": True}
    async with client(engine) as http:
        response = await http.post(CHAT, json=asked)
    assert engine.seen[0].prompt_ids == fmt.render(HELLO, THINKING)
    assert "let me" not in response.text
    assert '"reasoning"' not in response.text
    assert "reasoning_content" not in response.text
    thought = len(fmt.encode_text("let me see")) + 1
    assert f'"reasoning_tokens":{thought}' in response.text
