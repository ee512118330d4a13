"""Modes of kind `auto`: the answer is that of the mode which was chosen, and the choice is told."""

import asyncio
import itertools
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from engine.messages import Delta, Sampling, TokenLogprob
from server.app import create_app
from server.cli_errors import UsageError
from server.core.drafted import DraftedChoice
from server.core.plan import ChoicePlan, Draft
from server.core.scheduler import Lane
from server.modes.confidence import (
    ENTROPY_TOP,
    ROUNDING,
    Signal,
    Weights,
    confidence,
    likeliest_needed,
    most_confidence,
)
from server.modes.mode import Modes
from server.modes.profile import PROFILE_FOLDER, AutoMode, Profile, load_profile
from server.modes.start_report import report, warnings
from server.modes.thinking import ThinkingPlan
from server.settings import Settings
from tests.fake_engine import FakeEngine, Script
from tests.server.conftest import HELLO, body
from tests.server.rig import Rig
from tests.server.test_http import error_of
from tests.server.test_streaming import CALL, TOOLS, events_of, gathered, plain

CHAT = "/v1/chat/completions"
EXAMPLE = Path(__file__).parents[2] / "examples" / "twogear_tiny_auto.toml"
ANSWER, THOUGHT = "Forty-two é", "so 12 é\nand"
KEPT, DROPPED = -(10.0**6), 0.0
"""Thresholds that any draft reaches, and that none does: the engine is never quite sure of a token."""
WEIGHED = Weights(bias=1.0, sum=0.5, entropy=1.0, length=-0.1)
UNFORESEEN = Weights(mean=-1.0)
"""A signal that may still rise until all tokens are there."""
CHOSEN = {KEPT: "standard", DROPPED: "reasoning"}

Served = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def with_auto(profile: Profile, threshold: float, draft_tokens: int = 4, **rule: Any) -> Profile:
    """A profile with a mode that chooses between its two."""
    auto = AutoMode(direct="standard", thinking="reasoning", threshold=threshold, draft_tokens=draft_tokens, **rule)
    return msgspec.structs.replace(profile, modes={**profile.modes, "auto": auto})


@pytest.fixture(scope="session")
def auto(fmt: ChatFormat, profile: Profile) -> Served:
    """Makes an HTTP client of an app with such a mode."""

    @asynccontextmanager
    async def connect(engine: FakeEngine, threshold: float, **rule: Any) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(engine, Settings(), with_auto(profile, threshold, **rule), fmt)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
            yield http

    return connect


def writer(fmt: ChatFormat, answer: list[int]) -> Script:
    """Thinks where thinking is open, and answers; answers otherwise at once. It goes on from what it wrote before."""
    thinking = [*fmt.encode_text(THOUGHT), *fmt.close_thinking()]
    prompts = {
        len(fmt.render(HELLO, style, tools)): [*(thinking if style.opens_thinking else []), *answer]
        for style in (DIRECT, THINKING)
        for tools in ((), TOOLS)
    }

    def write(prompt: list[int]) -> Iterator[int]:
        start = max((length for length in prompts if length <= len(prompt)), default=0)
        return iter(prompts[start][len(prompt) - start :] if fmt.is_thinking_open(prompt) else answer)

    return write


def engine_of(fmt: ChatFormat, **options: Any) -> FakeEngine:
    answer = [*fmt.encode_text(ANSWER), fmt.end_of_turn_id]
    return FakeEngine(writer(fmt, answer), (fmt.end_of_turn_id,), **options)


def without_choice(answer: dict[str, Any]) -> dict[str, Any]:
    """A response less what only a mode that chooses tells; how long a draft is may depend on the engine's steps."""
    details = dict(answer["usage"]["completion_tokens_details"])
    for name in ("draft_tokens", "found_again_tokens"):
        details.pop(name, None)
    return {**answer, "usage": {**answer["usage"], "completion_tokens_details": details}}


RULES: list[dict[str, Any]] = [
    {"threshold": threshold, "draft_tokens": draft_tokens, "signal": signal}
    for threshold, signals in (
        (KEPT, ("sum", "mean", "least", "first", "entropy", WEIGHED)),
        (DROPPED, ("sum", WEIGHED)),
    )
    for draft_tokens in (1, 4, 30)
    for signal in signals
]


@pytest.fixture(scope="module")
def rig(fmt: ChatFormat, profile: Profile) -> Iterator[Rig]:
    """With a mode for each of RULES."""
    autos = {f"auto{n}": AutoMode(direct="standard", thinking="reasoning", **rule) for n, rule in enumerate(RULES)}
    with Rig.opened(fmt, msgspec.structs.replace(profile, modes={**profile.modes, **autos})) as rig:
        yield rig


@given(data=st.data())
def test_what_is_answered_is_the_chosen_modes(rig: Rig, fmt: ChatFormat, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(RULES) - 1))
    mode = CHOSEN[RULES[number]["threshold"]]
    fields: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {"max_tokens": st.integers(1, 60)},
            optional={
                "thinking_token_budget": st.integers(1, 30),
                "stop": st.sampled_from(["t", "ty-", "wo"]),
                "stop_token_ids": st.just([fmt.encode_text("a")[0]]),
                "min_tokens": st.just(1),
                "n": st.integers(1, 3),
                "seed": st.just(5),
                "return_token_ids": st.booleans(),
            },
        )
    )
    if data.draw(st.booleans()):
        fields |= {"logprobs": True, "top_logprobs": 2, "reasoning_logprobs": data.draw(st.booleans())}
    calls = data.draw(st.booleans())
    if calls:
        fields |= {"tools": TOOLS, "parallel_tool_calls": data.draw(st.booleans())}
    call = [fmt.tool_call_id, *fmt.encode_text(CALL), fmt.tool_call_end_id]
    script = writer(fmt, [*fmt.encode_text(ANSWER), *(call * 2 if calls else []), fmt.end_of_turn_id])
    chunks = [data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)) for _ in range(3)]

    asked = body(reasoning_mode=f"auto{number}", **fields)
    whole = rig.ask(script, chunks[0], asked).json()
    streamed = rig.ask(script, chunks[1], {**asked, "stream": True, "stream_options": {"include_usage": True}})
    chosen = [choice["reasoning_mode"] for choice in whole["choices"]]
    own = rig.ask(script, chunks[2], {**asked, "reasoning_mode": chosen[0]}).json()
    assert without_choice(plain(whole)) == without_choice(plain(own))
    events = events_of(streamed.text)
    assert without_choice(gathered(events)) == without_choice(plain(whole))
    if chosen != [mode] * fields.get("n", 1):  # only where no token is left for thinking
        thought = rig.ask(script, chunks[2], {**asked, "reasoning_mode": "reasoning"}).json()
        assert (mode, thought["usage"]["completion_tokens_details"]["reasoning_tokens"]) == ("reasoning", 0)
    first = {parts["index"]: parts for event in reversed(events[:-2]) for parts in event["choices"]}
    assert [first[index]["reasoning_mode"] for index in sorted(first)] == chosen
    assert sum("reasoning_mode" in event["choices"][0] for event in events[:-2]) == len(chosen)
    for choice in whole["choices"]:
        assert ("reasoning" in choice["message"]) == (choice["reasoning_mode"] == "reasoning")


async def test_a_kept_draft_is_one_generation(auto: Served, fmt: ChatFormat) -> None:
    engine = engine_of(fmt)
    async with auto(engine, KEPT) as http:
        response = (await http.post(CHAT, json=body(reasoning_mode="auto"))).json()
    (request,) = engine.seen
    assert request.prompt_ids == fmt.render(HELLO, DIRECT)
    assert (request.sampling.logprobs, request.held_tokens) == (0, 4)
    assert not engine.aborted
    (choice,) = response["choices"]
    assert (choice["reasoning_mode"], choice["message"]["content"], choice["logprobs"]) == ("standard", ANSWER, None)
    assert response["usage"]["completion_tokens"] == len(fmt.encode_text(ANSWER)) + 1
    assert response["usage"]["completion_tokens_details"]["draft_tokens"] == 0


@pytest.mark.parametrize(("draft_tokens", "chunk", "drawn"), [(1, 1, 1), (4, 1, 4), (4, 3, 6), (100, 1, None)])
async def test_a_dropped_draft_is_counted_apart(
    auto: Served, fmt: ChatFormat, draft_tokens: int, chunk: int, drawn: int | None
) -> None:
    engine = engine_of(fmt, chunks=(chunk,))
    engine.cached_tokens = 7
    async with auto(engine, DROPPED, draft_tokens=draft_tokens, signal=UNFORESEEN) as http:
        response = (await http.post(CHAT, json=body(reasoning_mode="auto"))).json()
        metrics = (await http.get("/metrics")).text
    draft, thought = engine.seen
    assert draft.prompt_ids == fmt.render(HELLO, DIRECT)
    assert thought.prompt_ids == fmt.render(HELLO, THINKING)
    assert (thought.sampling.logprobs, thought.held_tokens) == (None, 0)
    (choice,) = response["choices"]
    assert (choice["reasoning_mode"], choice["reasoning_finish_reason"]) == ("reasoning", "natural")
    assert choice["message"]["reasoning"] == THOUGHT
    usage = response["usage"]
    whole = [*fmt.encode_text(THOUGHT), *fmt.close_thinking(), *fmt.encode_text(ANSWER), fmt.end_of_turn_id]
    drawn = drawn or len(fmt.encode_text(ANSWER)) + 1
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(thought.prompt_ids), len(whole))
    assert usage["prompt_tokens_details"]["cached_tokens"] == 7
    details = usage["completion_tokens_details"]
    assert (details["draft_tokens"], details["found_again_tokens"]) == (drawn, 7)
    assert f'twogear_tokens_total{{kind="draft",mode="auto"}} {drawn}.0' in metrics
    assert 'twogear_requests_total{mode="auto",outcome="completed"} 1.0' in metrics


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_mode": "auto"},
        {"model": "twogear-tiny:auto"},
        {"thinking": {"type": "adaptive"}},
        {"thinking": {"type": "adaptive"}, "reasoning_effort": "low"},
        {"reasoning_mode": "auto", "thinking_token_budget": 20},
    ],
)
async def test_ways_to_ask_for_it(auto: Served, fmt: ChatFormat, fields: dict[str, Any]) -> None:
    async with auto(engine_of(fmt), KEPT) as http:
        (choice,) = (await http.post(CHAT, json=body(**fields))).json()["choices"]
        kinds = {one["id"]: one["kind"] for one in (await http.get("/v1/models")).json()["data"]}
    assert choice["reasoning_mode"] == "standard"
    assert kinds["twogear-tiny:auto"] == "auto"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_mode": "auto", "enable_thinking": False}, "enable_thinking"),
        ({"reasoning_mode": "auto", "model": "twogear-tiny:reasoning"}, "reasoning_mode"),
        ({"thinking": {"type": "adaptive"}, "reasoning_mode": "standard"}, "thinking.type"),
    ],
)
async def test_contradictions(auto: Served, fmt: ChatFormat, fields: dict[str, Any], param: str) -> None:
    async with auto(engine_of(fmt), KEPT) as http:
        response = await http.post(CHAT, json=body(**fields))
    assert (response.status_code, error_of(response)["param"]) == (400, param)


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({"thinking_token_budget": 0}, "standard"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "It is"}], "continue_final_message": True}, "standard"),
        (
            {
                "messages": [*HELLO, {"role": "assistant", "content": "", "reasoning_content": "2 and"}],
                "continue_final_message": True,
            },
            "reasoning",
        ),
    ],
)
async def test_where_there_is_nothing_to_choose(
    auto: Served, fmt: ChatFormat, fields: dict[str, Any], mode: str
) -> None:
    engine = FakeEngine(lambda _prompt: iter([*fmt.encode_text("four"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    async with auto(engine, DROPPED) as http:
        response = (await http.post(CHAT, json=body(reasoning_mode="auto", **fields))).json()
    assert engine.seen[0].sampling.logprobs is None
    assert response["choices"][0]["reasoning_mode"] == mode
    assert response["usage"]["completion_tokens_details"]["draft_tokens"] == 0


@pytest.mark.parametrize("threshold", [KEPT, DROPPED])
async def test_in_messages(auto: Served, fmt: ChatFormat, threshold: float) -> None:
    """The same as in the mode that is chosen, and the choice is told when the message begins."""
    fields = {"model": "twogear-tiny", "max_tokens": 100, "messages": HELLO}
    async with auto(engine_of(fmt), threshold, signal=UNFORESEEN) as http:

        async def ask(**more: Any) -> httpx.Response:
            response = await http.post("/v1/messages", json={**fields, **more})
            assert response.status_code == 200, response.text
            return response

        own = (await ask(reasoning_mode=CHOSEN[threshold])).json()
        whole = (await ask(thinking={"type": "adaptive"}, output_config={"effort": "max"})).json()
        stream = (await ask(thinking={"type": "adaptive"}, stream=True)).text
    events = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
    assert whole.pop("reasoning_mode") == CHOSEN[threshold]
    details = whole["usage"]["output_tokens_details"]
    assert details.pop("draft_tokens") == (0 if threshold == KEPT else 4)
    del details["found_again_tokens"]
    unlike = {"id", "content"}
    assert {name: value for name, value in whole.items() if name not in unlike} == {
        name: value for name, value in own.items() if name not in unlike
    }
    blocks = [[{**block, "signature": ""} for block in one["content"]] for one in (own, whole)]
    assert blocks[0] == blocks[1]
    assert [block["type"] for block in blocks[0]] == (["text"] if threshold == KEPT else ["thinking", "text"])
    assert events[0]["message"]["reasoning_mode"] == CHOSEN[threshold]
    told = [event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta"]
    assert "".join(told) == ANSWER


@pytest.mark.parametrize("threshold", [KEPT, DROPPED])
async def test_in_responses(auto: Served, fmt: ChatFormat, threshold: float) -> None:
    """The sampling that a response names is that of the mode which was chosen."""
    fields = {"model": "twogear-tiny", "input": "Hi", "store": False}
    async with auto(engine_of(fmt), threshold, signal=UNFORESEEN) as http:

        async def ask(**more: Any) -> httpx.Response:
            response = await http.post("/v1/responses", json={**fields, **more})
            assert response.status_code == 200, response.text
            return response

        own = (await ask(reasoning_mode=CHOSEN[threshold])).json()
        whole = (await ask(reasoning_mode="auto")).json()
        stream = (await ask(reasoning_mode="auto", stream=True)).text
    events = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: {")]
    assert whole.pop("reasoning_mode") == CHOSEN[threshold]
    details = whole["usage"]["output_tokens_details"]
    assert details.pop("draft_tokens") == (0 if threshold == KEPT else 4)
    del details["found_again_tokens"]
    unlike = {"id", "created_at", "completed_at", "output"}
    assert {name: value for name, value in whole.items() if name not in unlike} == {
        name: value for name, value in own.items() if name not in unlike
    }
    texts = [[item.get("content") for item in one["output"]] for one in (own, whole)]
    assert texts[0] == texts[1]
    assert events[0]["response"]["reasoning_mode"] == CHOSEN[threshold]
    assert events[-1]["response"]["output"][-1]["content"][0]["text"] == ANSWER


async def test_a_draft_shows_no_thinking(auto: Served, fmt: ChatFormat) -> None:
    """As a mode that does not think, whatever the model writes."""
    words = [fmt.think_id, *fmt.encode_text("hm"), *fmt.close_thinking(), *fmt.encode_text("4"), fmt.end_of_turn_id]
    async with auto(FakeEngine(lambda _prompt: iter(words), (fmt.end_of_turn_id,)), KEPT) as http:
        asked = {"stream": True, "stream_options": {"include_usage": True}}
        own, both = [
            gathered(events_of((await http.post(CHAT, json=body(reasoning_mode=mode, **asked))).text))
            for mode in ("standard", "auto")
        ]
    assert without_choice(both) == own
    assert both["choices"][0]["reasoning"] == ""


async def test_log_probabilities_of_the_prompt(auto: Served, fmt: ChatFormat) -> None:
    fields = body(prompt_logprobs=1, return_token_ids=True)
    for threshold, mode in CHOSEN.items():
        async with auto(engine_of(fmt), threshold) as http:
            own, both = [
                (await http.post(CHAT, json={**fields, "reasoning_mode": name})).json() for name in (mode, "auto")
            ]
        for name in ("prompt_logprobs", "prompt_token_ids"):
            assert both[name] == own[name]


async def test_a_client_that_leaves_ends_the_draft(auto: Served, fmt: ChatFormat) -> None:
    begun = asyncio.Event()

    async def step() -> None:
        begun.set()
        await asyncio.sleep(0.001)

    words = fmt.encode_text("hm ") * 10_000
    engine = FakeEngine(lambda _prompt: iter(words), (fmt.end_of_turn_id,), max_context=100_000, step=step)
    async with auto(engine, KEPT, draft_tokens=4096) as http:
        asked = asyncio.create_task(http.post(CHAT, json=body(reasoning_mode="auto", max_tokens=50_000)))
        await begun.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert engine.aborted
    assert not engine.under_way


async def test_a_draft_that_is_told_to_end_is_the_answer(auto: Served, fmt: ChatFormat) -> None:
    """So does a server that drains."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        reached.set()
        await go_on.wait()

    engine = engine_of(fmt, step=step)
    async with auto(engine, DROPPED, draft_tokens=4096, signal=UNFORESEEN) as http:
        fields = body(reasoning_mode="auto", stream=True, stream_options={"include_usage": True})
        asked = asyncio.create_task(http.post(CHAT, json=fields))
        await reached.wait()
        name = engine.seen[0].request_id.removesuffix("-0-0")
        told = (await http.post(f"{CHAT}/{name}/control", json={"action": "end_reasoning"})).json()
        go_on.set()
        answer = gathered(events_of((await asked).text))
    assert told["choices"] == [0]
    assert answer["choices"][0]["content"] == ANSWER
    assert len(engine.seen) == 1


async def test_a_thought_that_took_over_is_told_to_end(auto: Served, fmt: ChatFormat) -> None:
    """As in the mode that thinks."""
    thought = fmt.encode_text("hm ") * 500
    answer = [*fmt.encode_text(ANSWER), fmt.end_of_turn_id]

    def write(prompt: list[int]) -> Iterator[int]:
        return iter([*thought, *fmt.close_thinking(), *answer] if fmt.is_thinking_open(prompt) else answer)

    engine = FakeEngine(write, (fmt.end_of_turn_id,), step=partial(asyncio.sleep, 0.001))
    async with auto(engine, DROPPED) as http:
        asked = asyncio.create_task(http.post(CHAT, json=body(reasoning_mode="auto")))
        while len(engine.seen) < 2:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)
        name = engine.seen[0].request_id.removesuffix("-0-0")
        told = (await http.post(f"{CHAT}/{name}/control", json={"action": "end_reasoning"})).json()
        (choice,) = (await asked).json()["choices"]
    assert told["choices"] == [0]
    assert (choice["reasoning_mode"], choice["reasoning_finish_reason"]) == ("reasoning", "stopped")
    assert choice["message"]["content"] == ANSWER


@pytest.mark.parametrize("threshold", [KEPT, DROPPED])
async def test_an_answer_without_end_ends_with_the_limit_of_its_mode(
    auto: Served, fmt: ChatFormat, threshold: float
) -> None:
    """Of a client that names none."""
    words, written = fmt.encode_text("and so "), [*fmt.encode_text(THOUGHT), *fmt.close_thinking()]

    def write(prompt: list[int]) -> Iterator[int]:
        return itertools.chain(written if fmt.is_thinking_open(prompt) else [], itertools.cycle(words))

    async with auto(FakeEngine(write, (fmt.end_of_turn_id,)), threshold) as http:
        answer = (await http.post(CHAT, json=body(reasoning_mode="auto"))).json()
    (choice,), usage = answer["choices"], answer["usage"]
    assert (choice["reasoning_mode"], choice["finish_reason"]) == (CHOSEN[threshold], "length")
    assert usage["completion_tokens"] == (256 if threshold == KEPT else 4096 - usage["prompt_tokens"])


async def test_a_thought_waits_in_the_line_of_its_mode(fmt: ChatFormat, profile: Profile) -> None:
    """The draft holds a direct mode's place, and the thought one of a thinker's, as if each had been asked for."""
    engine = engine_of(fmt)
    app = create_app(engine, Settings(), with_auto(profile, DROPPED), fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        await http.post(CHAT, json=body(reasoning_mode="auto"))
    assert [request.priority for request in engine.seen] == [Lane.DIRECT, Lane.THINK]
    assert sorted(app.state.serving.scheduler.modes) == ["reasoning", "standard"]
    assert not any(mode.running or mode.queued for mode in app.state.serving.scheduler.modes.values())


@pytest.mark.parametrize("kept", [True, False])
def test_a_draft_that_is_set_back_goes_on(fmt: ChatFormat, *, kept: bool) -> None:
    ids = [11, 12, 13, 14, 15]
    direct = ChoicePlan([1, 2], Sampling(max_tokens=9), mode="standard")
    thinking = ThinkingPlan(5, (), (7,), "length")
    plan = ChoicePlan([1, 3], Sampling(max_tokens=20), thinking, mode="reasoning")
    rule = Draft(direct, 4, UNFORESEEN, KEPT if kept else DROPPED)
    choice = DraftedChoice(plan, rule, fmt.think_end(), None, None)
    sure = [TokenLogprob(-0.5)]
    fed = [part for token_id in ids[:2] for part in choice.draft(Delta("a", [token_id], 2, logprobs=sure))]
    assert not fed
    choice.set_back()
    assert choice.generation.prompt_ids == [1, 2, 11, 12]
    assert choice.generation.held_tokens == 2
    assert choice.generation.sampling.max_tokens == 7
    fed = [part for token_id in ids[2:4] for part in choice.draft(Delta("b", [token_id], 4, logprobs=sure))]
    assert [choice.feed(one).token_ids for one in fed] == ([[11], [12], [13], [14]] if kept else [])
    assert (choice.token_ids, choice.draft_tokens) == ((ids[:4], 0) if kept else ([], 4))
    assert choice.generation.prompt_ids == ([1, 2, 11, 12] if kept else [1, 3])


def in_toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {in_toml(one)}' for name, one in value.items())} }}"
    return "inf" if value == math.inf else json.dumps(value)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"direct": "auto"}, "modes.auto.direct is 'auto', which must be one of standard"),
        ({"direct": "reasoning"}, "modes.auto.direct is 'reasoning', which must be one of standard"),
        ({"thinking": "deep"}, "modes.auto.thinking is 'deep', which must be one of reasoning"),
        ({"thinking": "auto"}, "modes.auto.thinking is 'auto', which must be one of reasoning"),
        ({"threshold": 0.5}, "<= 0.0"),
        ({"threshold": None}, "threshold"),
        ({"signal": "luck"}, "luck"),
        ({"signal": {"luck": 1.0}}, "luck"),
        ({"signal": {"sum": math.inf}}, "a weight must be a finite number"),
        ({"draft_tokens": 0}, "draft_tokens"),
        ({"temperature": 1.0}, "temperature"),
        ({"template_variables": {"mode": "adaptive"}}, "leave the choice to the model, so there is no threshold"),
        ({"template_variables": {}, "threshold": None, "calibrated_for": "m"}, "leave the choice to the model"),
    ],
)
def test_a_wrong_profile(tmp_path: Path, rule: dict[str, Any], told: str) -> None:
    given = {"kind": "auto", "direct": "standard", "thinking": "reasoning", "threshold": -1.0, **rule}
    lines = [f"{name} = {in_toml(value)}" for name, value in given.items() if value is not None]
    path = tmp_path / "wrong.toml"
    path.write_text("\n".join([(PROFILE_FOLDER / "twogear_tiny.toml").read_text(), "[modes.auto]", *lines]))
    with pytest.raises(UsageError) as caught:
        load_profile(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


ENTRIES = [TokenLogprob(-0.1, [(1, -0.1)]), TokenLogprob(-2.0, [(2, -1.0), (3, -2.0)]), TokenLogprob(-0.3, [(4, 0.0)])]


@pytest.mark.parametrize(("signal", "value"), [("sum", -2.4), ("mean", -0.8), ("least", -2.0), ("first", -0.1)])
def test_confidence(signal: Signal, value: float) -> None:
    assert confidence(signal, ENTRIES) == pytest.approx(value)


def test_confidence_by_weights() -> None:
    """The log of a logistic function, however far the odds go."""
    odds = 1.0 + 0.5 * -2.4 + 2.0 * -2.0 - 0.1 * 3
    weights = Weights(bias=1.0, sum=0.5, least=2.0, length=-0.1)
    assert confidence(weights, ENTRIES) == pytest.approx(-math.log1p(math.exp(-odds)))
    assert confidence(Weights(bias=-900.0), ENTRIES) == -900.0
    assert confidence(Weights(bias=900.0), ENTRIES) == 0.0
    asked = [likeliest_needed(one) for one in (weights, Weights(entropy=1.0), "entropy")]
    assert asked == [0, ENTROPY_TOP, ENTROPY_TOP]


def test_confidence_by_entropy() -> None:
    """All tokens that are not told apart count as one."""
    shares = [math.exp(-1.0), math.exp(-2.0)]
    shares.append(1.0 - sum(shares))
    assert confidence("entropy", ENTRIES) == pytest.approx(sum(share * math.log(share) for share in shares))
    assert confidence("entropy", [TokenLogprob(0.0, [(1, 0.0), (2, -math.inf)])]) == 0.0


def test_the_example_is_the_embedded_models_profile_with_a_mode_more(fmt: ChatFormat, profile: Profile) -> None:
    """Its threshold was measured on that model."""
    example = load_profile(EXAMPLE)
    assert {name: mode for name, mode in example.modes.items() if name != "auto"} == dict(profile.modes)
    assert (example.default_mode, example.dialects, example.format) == (
        profile.default_mode,
        profile.dialects,
        profile.format,
    )
    assert isinstance(example.modes["auto"], AutoMode)
    told = list(warnings(Modes.of(example, fmt), fmt, example, EXAMPLE.stem, "twogear-tiny"))
    assert told == list(warnings(Modes.of(profile, fmt), fmt, profile, "twogear_tiny", "twogear-tiny"))


@pytest.mark.parametrize(
    ("calibrated_for", "told"), [("", "on no model"), ("other", "on other"), ("twogear-tiny", None)]
)
def test_a_threshold_of_another_model_is_told(
    fmt: ChatFormat, profile: Profile, calibrated_for: str, told: str | None
) -> None:
    with_one = with_auto(profile, -1.0, calibrated_for=calibrated_for)
    modes = Modes.of(with_one, fmt)
    lines = [line for line in warnings(modes, fmt, with_one, "own", "twogear-tiny") if "threshold" in line]
    assert len(lines) == (told is not None)
    assert all(told in line and "twogear calibrate" in line for line in lines if told is not None)
    assert any("mode auto: begins as standard" in line for line in report(modes, fmt, "own"))


SIGNALS: list[Signal] = ["sum", "mean", "least", "first", "entropy", WEIGHED, Weights(sum=0.5, mean=-0.9, length=0.2)]


@given(
    signal=st.sampled_from(SIGNALS),
    logprobs=st.lists(st.floats(-9.0, 0.0), min_size=1, max_size=6),
    more=st.integers(0, 4),
)
def test_no_tokens_that_follow_make_a_draft_surer_than_it_can_come_to(
    signal: Signal, logprobs: list[float], more: int
) -> None:
    entries = [TokenLogprob(one, [(1, one)]) for one in logprobs]
    tokens = len(entries) + more
    bounds = [most_confidence(signal, entries[:end], tokens) for end in range(1, len(entries) + 1)]
    assert all(bound >= confidence(signal, entries) - ROUNDING for bound in bounds)
    assert all(later <= earlier + ROUNDING for earlier, later in itertools.pairwise(bounds))
    if not more:
        assert bounds[-1] == confidence(signal, entries)


def test_a_weight_against_a_falling_signal_has_no_bound() -> None:
    """But for a draft that has all its tokens."""
    against = Weights(bias=-3.0, least=-1.0)
    assert most_confidence(against, ENTRIES, 4) == 0.0
    assert most_confidence(against, ENTRIES, 3) == confidence(against, ENTRIES) < 0.0


@pytest.mark.parametrize("signal", ["sum", "least", "mean", Weights(sum=1.0, least=1.0, length=0.1)])
def test_a_draft_that_is_lost_is_dropped_at_once(fmt: ChatFormat, signal: Signal) -> None:
    one = ChoicePlan([1, 2], Sampling(max_tokens=100), mode="standard")
    then = ChoicePlan([1, 3], Sampling(max_tokens=200), ThinkingPlan(8, (), (99,), "budget"), mode="reasoning")
    choice = DraftedChoice(then, Draft(one, 30, signal, -2.0), fmt.think_end(), None, None)
    assert choice.draft(Delta("r", [11], 0, logprobs=[TokenLogprob(-0.01, [])])) == ()
    assert choice.drafting
    assert choice.draft(Delta("r", [12], 0, logprobs=[TokenLogprob(-80.0, [])])) == ()
    assert (choice.is_dropped, choice.draft_tokens, choice.generation.prompt_ids) == (True, 2, [1, 3])
