"""What the engine's sampler has no room for is a 400 that names the field, and nobody else notices."""

import re
from typing import Any

import msgspec
import pytest

from chat_templates.format import ChatFormat
from engine.messages import Continuation, Generate, Sampling, SamplingLimits
from engine.sampling_limits import Excess, check_limits, excess
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client, always, body

LIMITS = SamplingLimits(
    stop_token_ids=128, logit_bias=1024, allowed_token_ids=1024, bad_words=128, bad_word_tokens=1024
)
"""vLLM 0.32's V2 runner."""
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BIAS = {str(token_id): 1.0 for token_id in range(100, 1124)}

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "stop tokens and ours": ({"min_tokens": 1, "stop_token_ids": [*range(100, 228)]}, "stop_token_ids", "at most 127"),
    "bias and that of the calls": ({"logit_bias": BIAS, "tools": [TOOL], "tool_choice": "none"}, "logit_bias", "1023"),
    "allowed tokens": ({"allowed_token_ids": [*range(100, 1125)]}, "allowed_token_ids", "1025.* at most 1024"),
    "long bad words": ({"bad_words": ["many words " * 30] * 64}, "bad_words", "at most 1024"),
}
TAKEN: dict[str, dict[str, Any]] = {
    "stop tokens without a least length": {"stop_token_ids": [*range(100, 228)]},
    "a stop token fewer": {"min_tokens": 1, "stop_token_ids": [*range(100, 227)]},
    "all of them without ours": {"min_tokens": 1, "stop_token_ids": [*range(100, 228)], "ignore_eos": True},
    "bias alone": {"logit_bias": BIAS},
    "allowed tokens": {"allowed_token_ids": [*range(100, 1124)]},
}


def limited(fmt: ChatFormat) -> FakeEngine:
    engine = FakeEngine(always([*fmt.encode_text("forty"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    assert engine.ready is not None
    engine.ready = msgspec.structs.replace(engine.ready, sampling_limits=LIMITS)
    return engine


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize("case", REFUSED)
async def test_a_list_too_long_is_refused_by_name(client: Client, fmt: ChatFormat, case: str, mode: str) -> None:
    fields, param, words = REFUSED[case]
    engine = limited(fmt)
    async with client(engine) as http:
        response = await http.post("/v1/chat/completions", json=body(reasoning_mode=mode, **fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert re.search(words, error["message"])
    assert not engine.seen


@pytest.mark.parametrize("case", TAKEN)
async def test_what_fits_is_taken(client: Client, fmt: ChatFormat, case: str) -> None:
    engine = limited(fmt)
    async with client(engine) as http:
        response = await http.post("/v1/chat/completions", json=body(**TAKEN[case]))
    assert response.status_code == 200, response.text
    (seen,) = engine.seen
    check_limits(seen, LIMITS, (fmt.end_of_turn_id,))


def test_an_engine_without_limits_takes_all() -> None:
    long = Sampling(max_tokens=9, min_tokens=1, stop_token_ids=tuple(range(999)), bad_words=((1,) * 5000,))
    assert excess(long, SamplingLimits(), (2,)) is None


def test_bad_words_count_as_often_as_they_are_written() -> None:
    many = Sampling(max_tokens=9, bad_words=((5,), (6, 7)) * 65)
    assert excess(many, LIMITS, (2,)) == Excess("bad_words", "ways to write them", 130, 128)


def test_the_engine_looks_at_both_parts() -> None:
    short, long = Sampling(max_tokens=9), Sampling(max_tokens=9, logit_bias=dict.fromkeys(range(1025), 1.0))
    check_limits(Generate("a", [1], short), LIMITS, (2,))
    for request in (Generate("a", [1], long), Generate("a", [1], short, then=Continuation(3, 1, (1,), long))):
        with pytest.raises(ValueError, match="logit_bias has 1025 tokens; the engine takes at most 1024"):
            check_limits(request, LIMITS, (2,))
