"""Modes of kind `auto` of a family whose models choose themselves: the tag that the model begins with says the mode."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.format import ChatFormat
from chat_templates.tokens import Vocabulary
from engine.messages import Delta, Sampling
from server.app import create_app
from server.core.drafted import ForkedChoice
from server.core.plan import ChoicePlan, Fork
from server.modes.mode import NO_TAGS, Modes
from server.modes.start_report import report, warnings
from server.modes.thinking import ThinkingPlan
from server.settings import Settings
from tests.chat_templates.foreign import IM, IM_NAMES, tokenizer_json
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, body
from tests.server.families import SMALL
from tests.server.test_auto import CHAT, without_choice
from tests.server.test_families import loaded
from tests.server.test_http import error_of
from tests.server.test_streaming import events_of, gathered, plain

NAME = "minimax_m3"
ANSWER, THOUGHT = '{"a": 42}', "so 12 é\nand"
CHOSEN = {True: "reasoning", False: "standard"}
PROFILE, FMT, MODES = loaded(NAME)
ASKED: list[dict[str, Any]] = [
    {},
    {"n": 2, "seed": 5},
    {"max_tokens": 30, "thinking_token_budget": 4},
    {"logprobs": True, "top_logprobs": 1},
    {"response_format": {"type": "json_object"}},
    {"stop": ["42"], "min_tokens": 1, "stop_token_ids": [FMT.encode_text("}")[0]]},
    {"frequency_penalty": 0.5, "temperature": 0.2},
]


def engine_that(*, thinks: bool) -> FakeEngine:
    """Begins with the one tag or the other where neither is in the prompt, and writes what belongs there."""
    answer = [*FMT.encode_text(ANSWER), FMT.end_of_turn_id]
    thought = [*FMT.encode_text(THOUGHT), *FMT.close_thinking()]

    def write(prompt: list[int]) -> Iterator[int]:
        tags = [at for at, token_id in enumerate(prompt) if token_id in (FMT.think_id, FMT.think_end_id)]
        if not tags:
            return iter([FMT.think_id if thinks else FMT.think_end_id])
        text = thought + answer if prompt[tags[0]] == FMT.think_id else answer
        return iter(text[len(prompt) - tags[0] - 1 :])

    return FakeEngine(write, (FMT.end_of_turn_id,))


@asynccontextmanager
async def served(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, replace(Settings(), served_model_name="m"), PROFILE, FMT)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        yield http


async def answered(http: httpx.AsyncClient, path: str = CHAT, **fields: Any) -> httpx.Response:
    response = await http.post(path, json=body(**{"model": "m", **fields}))
    assert response.status_code == 200, response.text
    return response


def asking_prompt() -> list[int]:
    """What the template makes where it leaves the choice to the model, up to the tag."""
    ids = FMT.render(HELLO, MODES.by_name["auto"].style)
    assert FMT.decode(ids, show_control=True).startswith("Thinking mode: adaptive.")
    assert ids.index(FMT.think_id) == len(ids) - 1
    return ids[:-1]


@pytest.mark.parametrize("fields", ASKED)
@pytest.mark.parametrize("thinks", [True, False])
async def test_what_is_answered_is_the_chosen_modes(fields: dict[str, Any], *, thinks: bool) -> None:
    engine, n = engine_that(thinks=thinks), fields.get("n", 1)
    engine.cached_tokens = 7
    async with served(engine) as http:
        own = (await answered(http, reasoning_mode=CHOSEN[thinks], **fields)).json()
        engine.seen.clear()
        whole = (await answered(http, reasoning_mode="auto", **fields)).json()
        first, last = engine.seen[0], engine.seen[-1]
        streaming: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        events = events_of((await answered(http, reasoning_mode="auto", **fields, **streaming)).text)
    assert (first.prompt_ids, first.sampling.max_tokens) == (asking_prompt(), 1)
    assert first.sampling.allowed_token_ids == (FMT.think_id, FMT.think_end_id)
    assert (first.sampling.grammar, first.sampling.stop_token_ids) == (None, ())
    assert last.sampling.allowed_token_ids is None
    assert {choice["reasoning_mode"] for choice in whole["choices"]} == {CHOSEN[thinks]}
    told = [event["choices"][0].get("reasoning_mode") for event in events[:-2]]
    assert [mode for mode in told if mode is not None] == [CHOSEN[thinks]] * n
    assert told[0] is not None
    details = whole["usage"]["completion_tokens_details"]
    assert (details["draft_tokens"], details["found_again_tokens"]) == (n, 7 * n)
    assert without_choice(gathered(events)) == without_choice(plain(whole))
    assert plain(whole)["choices"] == plain(own)["choices"]
    assert whole["usage"]["completion_tokens"] == own["usage"]["completion_tokens"]
    assert whole["usage"]["prompt_tokens"] == len(asking_prompt()) + 1


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_mode": "auto"},
        {"model": "m:auto"},
        {"thinking": {"type": "adaptive"}},
        {"chat_template_kwargs": {"thinking_mode": "adaptive"}},
        {"thinking": {"type": "adaptive"}, "chat_template_kwargs": {"thinking_mode": "adaptive"}},
    ],
)
@pytest.mark.parametrize("thinks", [True, False])
async def test_ways_to_ask_for_it(fields: dict[str, Any], *, thinks: bool) -> None:
    engine = engine_that(thinks=thinks)
    async with served(engine) as http:
        (choice,) = (await answered(http, **fields)).json()["choices"]
    assert engine.seen[0].prompt_ids == asking_prompt()
    assert choice["reasoning_mode"] == CHOSEN[thinks]
    assert choice["message"]["content"] == ANSWER
    assert choice["message"].get("reasoning") == (THOUGHT if thinks else None)


async def test_contradictions() -> None:
    fields = {"thinking": {"type": "adaptive"}, "chat_template_kwargs": {"thinking_mode": "disabled"}}
    async with served(engine_that(thinks=True)) as http:
        response = await http.post(CHAT, json=body(model="m", **fields))
    assert (response.status_code, error_of(response)["param"]) == (400, "chat_template_kwargs.thinking_mode")


@pytest.mark.parametrize("thinks", [True, False])
async def test_in_messages_and_responses(*, thinks: bool) -> None:
    async with served(engine_that(thinks=thinks)) as http:
        asked = {"max_tokens": 100, "thinking": {"type": "adaptive"}}
        message = (await answered(http, "/v1/messages", **asked)).json()
        response = await http.post("/v1/responses", json={"model": "m:auto", "input": "Hi", "store": False})
    assert message["reasoning_mode"] == response.json()["reasoning_mode"] == CHOSEN[thinks]
    assert [block["type"] for block in message["content"]] == (["thinking"] if thinks else []) + ["text"]
    for usage in (message["usage"], response.json()["usage"]):
        assert usage["output_tokens_details"]["draft_tokens"] == 1


async def test_without_a_budget_there_is_nothing_to_choose() -> None:
    """The template is told so."""
    engine = engine_that(thinks=True)
    async with served(engine) as http:
        answer = (await answered(http, reasoning_mode="auto", thinking_token_budget=0)).json()
    (request,) = engine.seen
    assert request.prompt_ids == FMT.render(HELLO, MODES.by_name["standard"].style)
    assert answer["choices"][0]["reasoning_mode"] == "standard"
    assert answer["usage"]["completion_tokens_details"]["draft_tokens"] == 0


async def test_a_thought_that_is_continued_goes_on() -> None:
    engine = engine_that(thinks=False)
    past = {"role": "assistant", "content": "", "reasoning_content": THOUGHT}
    async with served(engine) as http:
        asked: dict[str, Any] = {"messages": [*HELLO, past], "continue_final_message": True}
        answer = (await answered(http, reasoning_mode="auto", **asked)).json()
    assert all(request.sampling.allowed_token_ids is None for request in engine.seen)
    assert answer["choices"][0]["reasoning_mode"] == "reasoning"


def fork_of(mode: str = "") -> Fork:
    direct = ChoicePlan([1, 2, 4], Sampling(max_tokens=20), mode=mode)
    return Fork(direct, [1, 2], Sampling(max_tokens=1), thinks=3)


@pytest.mark.parametrize(("drawn", "told", "mode"), [(3, False, "b"), (4, False, "a"), (3, True, "a")])
def test_one_that_is_told_to_end_its_thinking_has_none(drawn: int, mode: str, *, told: bool) -> None:
    plan = ChoicePlan([1, 2, 3], Sampling(max_tokens=20), ThinkingPlan(8, (), (99,), "budget"), mode="b")
    choice = ForkedChoice(plan, fork_of("a"), FMT.think_end(), None)
    choice.set_back()
    assert choice.generation.prompt_ids == [1, 2]
    if told:
        assert choice.end_thinking()
        assert not choice.end_thinking()
    assert choice.draft(Delta("r", [drawn], finish="length")) == ()
    assert (choice.mode, choice.thinking, choice.draft_tokens) == (mode, mode == "b", 1)
    assert choice.generation.prompt_ids == ([1, 2, 3] if mode == "b" else [1, 2, 4])
    assert choice.end_thinking() is (mode == "b")


def test_what_may_be_drawn_is_bounded() -> None:
    fork = fork_of()
    assert ChoicePlan([1, 2, 3], Sampling(max_tokens=10), draft=fork).most_tokens == 21
    assert ChoicePlan([1, 2, 3], Sampling(max_tokens=30), draft=fork).most_tokens == 31


def test_what_is_told_at_the_start() -> None:
    lines = [line for line in report(MODES, FMT, NAME) if line.startswith("mode auto")]
    assert len(lines) == 1
    assert 'the template is told thinking_mode = "adaptive"' in lines[0]
    assert not [line for line in warnings(MODES, FMT, PROFILE, NAME, "m") if "threshold" in line]


def test_without_tokens_for_the_tags_there_is_no_such_mode() -> None:
    """As text, a tag takes several tokens, of which the first says nothing."""
    small = SMALL[NAME]
    template = CheckpointTemplate(TemplateFiles(small.template, None, IM_NAMES), PROFILE.format)
    vocabulary = Vocabulary(tokenizer_json(IM, []), required=(), template=template.source)
    modes = Modes.of(PROFILE, ChatFormat(vocabulary, template))
    assert list(modes.by_name) == ["standard", "reasoning"]
    assert modes.lacking == {"auto": NO_TAGS}
