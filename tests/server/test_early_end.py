"""Thoughts that end early: where answers tried along them agree and are sure, whatever the engine's deltas are."""

import asyncio
import json
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
from chat_templates.settings import THINKING
from engine.messages import Delta, Generate
from server.access.keys import load_keys
from server.app import create_app
from server.cli_errors import UsageError
from server.core.scheduler import Lane, ModeLoad, Scheduler
from server.core.trials import HEAD_START, Points
from server.engine_client import EngineUnavailable, RequestBroke
from server.modes.early_end import EarlyEnd
from server.modes.mode import Modes
from server.modes.profile import PROFILE_FOLDER, Profile, ThinkingMode, load_profile
from server.modes.start_report import report, warnings
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, body
from tests.server.rig import Rig
from tests.server.test_auto import DROPPED, with_auto
from tests.server.test_keys import HASHES, bearer, connected
from tests.server.test_streaming import CALL, TOOLS, events_of, gathered, plain

CHAT = "/v1/chat/completions"
EMBEDDED = PROFILE_FOLDER / "twogear_tiny.toml"
EXAMPLE = Path(__file__).parents[2] / "examples" / "twogear_tiny_early.toml"
WORDS = "so it is about time to add one and two and then a few more of them and so on until there are none left at all"
ANSWER = "Forty-two"
SURE = -(10.0**6)
"""A threshold that every trial reaches."""
RULE = EarlyEnd(every=8, apart=4, answer_tokens=8, agreeing=2, threshold=SURE)

Served = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def with_rule(profile: Profile, rule: EarlyEnd | None) -> Profile:
    """A profile whose mode that thinks ends thoughts by a rule."""
    mode = profile.modes["reasoning"]
    assert isinstance(mode, ThinkingMode)
    early = msgspec.structs.replace(mode, early_end=rule)
    return msgspec.structs.replace(profile, modes={**profile.modes, "reasoning": early})


@pytest.fixture(scope="session")
def early(fmt: ChatFormat, profile: Profile) -> Served:
    """Makes an HTTP client of an app whose thoughts may end early."""

    @asynccontextmanager
    async def connect(
        engine: FakeEngine, rule: EarlyEnd | None = RULE, settings: Settings | None = None, **more: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(engine, settings or Settings(), with_rule(profile, rule), fmt, **more)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
            yield http

    return connect


class Thinker:
    """Writes `thought` where thinking is open, and goes on in it; answers elsewhere: by `answers`, from so many tokens
    of the thought on.
    """

    def __init__(self, fmt: ChatFormat, thought: list[int], answers: dict[int, str], *, tools: bool = False) -> None:
        self._fmt = fmt
        self._thought = thought
        self._answers = {start: fmt.encode_text(text) for start, text in answers.items()}
        self._prompt = len(fmt.render(HELLO, THINKING, TOOLS if tools else ()))

    def __call__(self, prompt: list[int]) -> Iterator[int]:
        fmt = self._fmt
        if fmt.is_thinking_open(prompt):
            rest = self._thought[len(prompt) - self._prompt :]
            return iter([*rest, *fmt.close_thinking(), *self._answer(len(self._thought)), fmt.end_of_turn_id])
        both = zip(prompt[self._prompt :], [*self._thought, None], strict=False)
        thought = next(n for n, (written, own) in enumerate(both) if written != own)
        return iter([*self._answer(thought), fmt.end_of_turn_id])

    def _answer(self, thought: int) -> list[int]:
        return self._answers[max(start for start in self._answers if start <= thought)]


def engine_of(fmt: ChatFormat, answers: dict[int, str] | None = None, **options: Any) -> FakeEngine:
    thinker = Thinker(fmt, fmt.encode_text(WORDS), answers or {0: ANSWER})
    return FakeEngine(thinker, (fmt.end_of_turn_id,), **options)


def trials_of(engine: FakeEngine) -> list[Generate]:
    return [request for request in engine.seen if request.sampling.logprobs is not None]


async def begun(engine: FakeEngine) -> None:
    """A trial has."""
    while not trials_of(engine):  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.001)


async def ask(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post(CHAT, json=body(reasoning_mode="reasoning", **fields))
    assert response.status_code == 200, response.text
    return answer_of(response)


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """The same whether it was streamed or not."""
    is_streamed = response.headers["content-type"].startswith("text/event-stream")
    return gathered(events_of(response.text)) if is_streamed else plain(response.json())


def ends_at(fmt: ChatFormat, text: str = ANSWER, began: int = 16) -> int:
    """After how many tokens a thought ends that is sure by the trial that began there."""
    return began + len(fmt.encode_text(text)) + 1 + HEAD_START


async def test_a_thought_ends_once_trials_agree(early: Served, fmt: ChatFormat) -> None:
    thought = fmt.encode_text(WORDS)
    engine = engine_of(fmt)
    rule = msgspec.structs.replace(RULE, every=12)
    async with early(engine, rule) as http:
        fields = body(reasoning_mode="reasoning", return_token_ids=True, max_tokens=300)
        answer = (await http.post(CHAT, json=fields)).json()
        metrics = (await http.get("/metrics")).text
    (choice,), details = answer["choices"], answer["usage"]["completion_tokens_details"]
    size = ends_at(fmt, began=24)
    assert size < len(thought)
    assert (choice["reasoning_finish_reason"], choice["message"]["content"]) == ("confident", ANSWER)
    assert choice["message"]["reasoning"].startswith(fmt.decode(thought[:size]))
    assert choice["token_ids"][:size] == thought[:size]
    first, second = trials_of(engine)
    assert [first.prompt_ids[-1], second.prompt_ids[-1]] == [first.prompt_ids[-1]] * 2
    prompt = fmt.render(HELLO, THINKING)
    for request, at in ((first, 12), (second, 24)):
        assert request.prompt_ids[: len(prompt) + at] == [*prompt, *thought[:at]]
        assert not fmt.is_thinking_open(request.prompt_ids)
        sampling = request.sampling
        assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.0, 8, None)
    assert details["trial_tokens"] == 2 * (len(fmt.encode_text(ANSWER)) + 1)
    assert answer["usage"]["completion_tokens"] == len(choice["token_ids"])
    assert f'twogear_tokens_total{{kind="trial",mode="reasoning"}} {details["trial_tokens"]}.0' in metrics
    assert 'twogear_reasoning_finish_total{how="confident"} 1.0' in metrics
    assert not engine.under_way


async def test_it_costs_nothing_where_it_is_off(early: Served, fmt: ChatFormat) -> None:
    engine = engine_of(fmt)
    async with early(engine, None) as http:
        answer = await ask(http)
    assert len(engine.seen) == 1
    assert "trial_tokens" not in answer["usage"]["completion_tokens_details"]
    assert answer["choices"][0]["reasoning_finish_reason"] == "natural"


@pytest.mark.parametrize(
    ("rule", "answers"),
    [
        (msgspec.structs.replace(RULE, threshold=0.0), {0: ANSWER}),  # the engine is never quite sure of a token
        (RULE, {start: str(start) for start in range(0, 64, 8)}),
        (msgspec.structs.replace(RULE, agreeing=4, most_trials=4), {0: "1", 32: "2"}),
    ],
)
async def test_else_it_goes_on(early: Served, fmt: ChatFormat, rule: EarlyEnd, answers: dict[int, str]) -> None:
    engine = engine_of(fmt, answers)
    async with early(engine, rule) as http:
        answer = await ask(http)
    (choice,) = answer["choices"]
    assert (choice["reasoning_finish_reason"], choice["reasoning"]) == ("natural", WORDS)
    assert len(trials_of(engine)) >= 2
    assert len(engine.seen) == 1 + len(trials_of(engine))
    assert answer["usage"]["completion_tokens_details"]["trial_tokens"] > 0


@pytest.fixture(scope="module")
def rig(fmt: ChatFormat, profile: Profile) -> Iterator[Rig]:
    with Rig.opened(fmt, with_rule(profile, RULE)) as rig:
        yield rig


@given(data=st.data())
def test_where_it_ends_does_not_depend_on_the_deltas(rig: Rig, fmt: ChatFormat, data: st.DataObject) -> None:
    """Nor on streaming, whatever is asked; and up to there the thought is what it would have been."""
    fields: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {"max_tokens": st.integers(1, 120)},
            optional={
                "thinking_token_budget": st.integers(1, 60),
                "stop": st.sampled_from(["t", "ty-", "wo"]),
                "stop_token_ids": st.just([fmt.encode_text("a")[0]]),
                "n": st.integers(1, 3),
                "seed": st.just(5),
                "return_token_ids": st.just(True),
                "logprobs": st.just(True),
                "response_format": st.just({"type": "json_object"}),
            },
        )
    )
    if data.draw(st.booleans()):
        fields |= {"tools": TOOLS, "parallel_tool_calls": data.draw(st.booleans())}
    thought = fmt.encode_text(WORDS)
    answers = {0: data.draw(st.sampled_from(["1", ANSWER])), data.draw(st.integers(0, 40)): ANSWER}
    script = Thinker(fmt, thought, answers, tools="tools" in fields)
    chunks = [data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)) for _ in range(2)]
    asked = body(reasoning_mode="reasoning", **fields)
    streaming = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    whole, streamed = (answer_of(rig.ask(script, *one)) for one in zip(chunks, (asked, streaming), strict=True))
    for answer in (whole, streamed):  # a trial that the thought's own end breaks off has drawn what it has drawn
        answer["usage"]["completion_tokens_details"].pop("trial_tokens")
    assert streamed == whole
    for choice in whole["choices"]:
        assert WORDS.startswith(choice["reasoning"]) or choice["reasoning_finish_reason"] != "natural"


POINTS = [
    (EarlyEnd(every=5, apart=2, threshold=0.0), "a b c d e f", ["a b c", " d e "]),
    (EarlyEnd(paragraphs=True, apart=1, threshold=0.0), "one\n\ntwo\nthree\n\nfour", ["one\n\n", "two\nthree\n\n"]),
    (EarlyEnd(words=("Wait",), apart=1, threshold=0.0), "so 3. Wait, no. Waits not: AWait", ["so 3. ", "Wait, no. "]),
    (EarlyEnd(words=("Hmm", "等等"), apart=1, threshold=0.0), "1 等等 2", ["1 "]),
    (EarlyEnd(words=("Wait",), apart=20, threshold=0.0), "so. Wait. Wait.", []),
]


@pytest.mark.parametrize(("rule", "text", "parts"), POINTS)
def test_points(fmt: ChatFormat, rule: EarlyEnd, text: str, parts: list[str]) -> None:
    ids = fmt.encode_text(text)
    points, found, start = Points(rule, fmt.detokenizer()), [], 0
    for number, token_id in enumerate(ids, 1):
        back = points.feed(token_id)
        if back is not None:
            found.append(fmt.decode(ids[start : number - back]))
            start = number - back
    assert found == parts


async def test_an_answer_with_a_form_is_tried_in_it(early: Served, fmt: ChatFormat) -> None:
    engine = engine_of(fmt, {0: '{"a": 1}'})
    rule = msgspec.structs.replace(RULE, lead="The answer is")
    async with early(engine, rule) as http:
        await ask(http, response_format={"type": "json_object"})
        bound = trials_of(engine)
        engine.seen.clear()
        await ask(http)
    lead = fmt.encode_text(rule.lead)
    assert all(one.sampling.grammar is not None for one in bound)
    assert not any(one.prompt_ids[-len(lead) :] == lead for one in bound)
    assert all(one.prompt_ids[-len(lead) :] == lead and one.sampling.grammar is None for one in trials_of(engine))


async def test_a_call_may_be_what_agrees(early: Served, fmt: ChatFormat) -> None:
    call = [fmt.tool_call_id, *fmt.encode_text(CALL), fmt.tool_call_end_id]
    thinker = Thinker(fmt, fmt.encode_text(WORDS), {0: ""}, tools=True)
    thinker._answers[0] = call
    engine = FakeEngine(thinker, (fmt.end_of_turn_id,))
    async with early(engine, msgspec.structs.replace(RULE, answer_tokens=64)) as http:
        (choice,) = (await ask(http, tools=TOOLS))["choices"]
    assert (choice["reasoning_finish_reason"], choice["finish_reason"]) in (
        ("confident", "tool_calls"),
        ("natural", "tool_calls"),
    )


async def test_in_the_other_apis(early: Served, fmt: ChatFormat) -> None:
    async with early(engine_of(fmt)) as http:
        messages = {"model": "twogear-tiny", "max_tokens": 200, "messages": HELLO, "reasoning_mode": "reasoning"}
        message = (await http.post("/v1/messages", json=messages)).json()
        streamed = (await http.post("/v1/messages", json={**messages, "stream": True})).text
        asked = {"model": "twogear-tiny", "input": "Hi", "store": False, "reasoning_mode": "reasoning"}
        response = (await http.post("/v1/responses", json=asked)).json()
    trial_tokens = 2 * (len(fmt.encode_text(ANSWER)) + 1)
    for one in (message, response):
        assert one["reasoning_finish_reason"] == "confident"
        assert one["usage"]["output_tokens_details"]["trial_tokens"] == trial_tokens
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line.startswith("data: ")]
    (end,) = [event for event in events if event["type"] == "message_delta"]
    assert end["delta"]["reasoning_finish_reason"] == "confident"
    assert end["usage"]["output_tokens_details"]["trial_tokens"] == trial_tokens


async def test_in_a_mode_that_chooses(fmt: ChatFormat, profile: Profile) -> None:
    engine = engine_of(fmt)
    app = create_app(engine, Settings(), with_auto(with_rule(profile, RULE), DROPPED), fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        response = (await http.post(CHAT, json=body(reasoning_mode="auto"))).json()
    (choice,), details = response["choices"], response["usage"]["completion_tokens_details"]
    assert (choice["reasoning_mode"], choice["reasoning_finish_reason"]) == ("reasoning", "confident")
    assert details["draft_tokens"] == 1  # after which no more tokens could make it sure
    assert details["trial_tokens"] == 2 * (len(fmt.encode_text(ANSWER)) + 1)


async def test_without_a_free_place_nothing_is_tried(early: Served, fmt: ChatFormat) -> None:
    engine = engine_of(fmt, max_num_seqs=1)
    async with early(engine) as http:
        answer = await ask(http)
    assert (len(engine.seen), answer["choices"][0]["reasoning_finish_reason"]) == (1, "natural")
    assert answer["usage"]["completion_tokens_details"]["trial_tokens"] == 0


class Broken(FakeEngine):
    """Fails every trial with `error`, if it has any; else trials never say a word."""

    error: Exception | None = None

    async def generate(self, request: Generate, kind: str = "") -> AsyncIterator[Delta]:  # type: ignore[override]
        if request.sampling.logprobs is not None:
            self.seen.append(request)
            self.under_way.add(request.request_id)
            try:
                if self.error is not None:
                    raise self.error
                await asyncio.Event().wait()
            finally:
                self.under_way.discard(request.request_id)
        async for delta in super().generate(request, kind):
            yield delta


@pytest.mark.parametrize("error", [RequestBroke("a step failed"), EngineUnavailable("gone")])
async def test_a_trial_that_fails_is_the_last(early: Served, fmt: ChatFormat, error: Exception) -> None:
    engine = Broken(Thinker(fmt, fmt.encode_text(WORDS), {0: ANSWER}), (fmt.end_of_turn_id,))
    engine.error = error
    async with early(engine) as http:
        (choice,) = (await ask(http))["choices"]
    assert (choice["reasoning_finish_reason"], choice["content"]) == ("natural", ANSWER)
    assert len(trials_of(engine)) == 1


async def test_a_trial_that_does_not_come_on_is_given_up(
    early: Served, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.core.trial_run.PATIENCE", 0.01)
    engine = Broken(Thinker(fmt, fmt.encode_text(WORDS), {0: ANSWER}), (fmt.end_of_turn_id,))
    async with early(engine) as http:
        (choice,) = (await ask(http))["choices"]
    assert (choice["reasoning_finish_reason"], choice["reasoning"]) == ("natural", WORDS)
    assert len(trials_of(engine)) > 1
    assert not engine.under_way


async def test_a_client_that_leaves_leaves_no_trial_behind(early: Served, fmt: ChatFormat) -> None:
    engine = Broken(Thinker(fmt, fmt.encode_text(WORDS), {0: ANSWER}), (fmt.end_of_turn_id,))
    async with early(engine) as http:
        asked = asyncio.create_task(ask(http))
        await begun(engine)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert not engine.under_way
        metrics = (await http.get("/metrics")).text
    assert 'twogear_engine_places{lane="think",state="held"} 0.0' in metrics


async def test_a_client_may_end_the_thought_before(early: Served, fmt: ChatFormat) -> None:
    engine = engine_of(fmt, step=partial(asyncio.sleep, 0.001))
    engine.script = Thinker(fmt, fmt.encode_text(WORDS) * 50, {n: str(n) for n in range(0, 2000, 4)})
    async with early(engine) as http:
        asked = asyncio.create_task(ask(http, max_tokens=2000))
        await begun(engine)
        name = engine.seen[0].request_id.removesuffix("-0-0")
        told = (await http.post(f"{CHAT}/{name}/control", json={"action": "end_reasoning"})).json()
        (choice,) = (await asked)["choices"]
    assert (told["choices"], choice["reasoning_finish_reason"]) == ([0], "stopped")
    assert not engine.under_way


def test_a_spare_place_is_one_that_nobody_needs() -> None:
    """And who needs it gets it back."""

    async def run() -> None:
        scheduler = Scheduler(lambda: 4, {"short": ModeLoad(thinks=False), "deep": ModeLoad(thinks=True)})
        claim = scheduler.claim("deep")
        async with scheduler.place(claim, thinking=True, can_set_back=False):
            spare = [scheduler.spare(claim) for _ in range(5)]
            held = [place for place in spare if place is not None]
            assert len(held) == 3
            assert scheduler.running(Lane.THINK) == 4
            short = scheduler.claim("short")
            assert not any(scheduler.is_wanted(place) for place in held)
            waiting = asyncio.create_task(_hold(scheduler, short))
            await asyncio.sleep(0)
            assert all(scheduler.is_wanted(place) for place in held)
            assert scheduler.spare(claim) is None
            for place in held:
                scheduler.leave(place)
            await waiting
        assert scheduler.free_for(thinks=True) == 4

    asyncio.run(run())


async def _hold(scheduler: Scheduler, claim: Any) -> None:
    async with scheduler.place(claim, thinking=False, can_set_back=True):
        pass


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("threshold = -1.0", "no point at which to try: every, paragraphs or words"),
        ("every = 0\nthreshold = -1.0", r"early_end\.every"),
        ("every = 8\nthreshold = -1.0", "every is 8, which must not be below apart, 16"),
        ("every = 32", "required field `threshold`"),
        ("every = 32\nthreshold = 0.1", r"early_end\.threshold"),
        ("every = 32\nthreshold = -1.0\nsignal = 'luck'", r"early_end\.signal"),
        ("every = 32\nthreshold = -1.0\nagreeing = 0", r"early_end\.agreeing"),
        ("every = 32\nthreshold = -1.0\nagreeing = 4\nmost_trials = 3", "agreeing is 4, which must not be above"),
        ("every = 32\nthreshold = -1.0\nanswer_tokens = 0", r"early_end\.answer_tokens"),
        ("every = 32\nthreshold = -1.0\nwords = ['']", r"early_end\.words"),
        ("words = ['Wait ']\nthreshold = -1.0", "words must neither begin nor end with a blank"),
        ("every = 32\nthreshold = -1.0\nevry = 3", "unknown field `evry`"),
    ],
)
def test_a_profile_with_nonsense_is_refused(tmp_path: Path, lines: str, names: str) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(f"{EMBEDDED.read_text()}\n[modes.reasoning.early_end]\n{lines}\n")
    with pytest.raises(UsageError, match=names) as error:
        load_profile(path)
    assert "early_end" in str(error.value)


def test_what_the_start_says(fmt: ChatFormat, profile: Profile) -> None:
    own = with_rule(profile, msgspec.structs.replace(RULE, calibrated_for="twogear-tiny"))
    modes = Modes.of(own, fmt)
    assert "once 2 answers tried along it agree" in "\n".join(report(modes, fmt, "own"))
    assert "early_end" in "".join(warnings(modes, fmt, own, "own", "another"))
    assert "early_end" not in "".join(warnings(modes, fmt, own, "own", "twogear-tiny"))


async def test_trials_count_in_what_a_key_has_spent(fmt: ChatFormat, profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'keys = [{{ name = "a", hash = "{HASHES["anna"]}", limits.tokens_per_minute = 100000 }}]')
    async with connected(engine_of(fmt), with_rule(profile, RULE), fmt, load_keys(file)) as http:
        asked = body(reasoning_mode="reasoning", max_tokens=500)
        usage = (await http.post(CHAT, json=asked, headers=bearer("anna"))).json()["usage"]
        last = await http.post(CHAT, json=body(max_tokens=1), headers=bearer("anna"))
    trials = usage["completion_tokens_details"]["trial_tokens"]
    assert trials > 0
    one = last.json()["usage"]["total_tokens"]
    left = int(last.headers["x-ratelimit-remaining-tokens"])
    assert 0 <= left - (100_000 - usage["total_tokens"] - trials - one) < 60_000 / 60, (
        "but for what came back with time"
    )


def test_the_example_is_the_embedded_models_profile_with_a_rule(fmt: ChatFormat, profile: Profile) -> None:
    """Its threshold was measured on that model."""
    example = load_profile(EXAMPLE)
    mode = example.modes["reasoning"]
    assert isinstance(mode, ThinkingMode)
    assert mode.early_end is not None
    assert with_rule(example, None).modes == profile.modes
    told = list(warnings(Modes.of(example, fmt), fmt, example, EXAMPLE.stem, "twogear-tiny"))
    assert told == list(warnings(Modes.of(profile, fmt), fmt, profile, "twogear_tiny", "twogear-tiny"))


async def test_the_example_serves(fmt: ChatFormat) -> None:
    engine = engine_of(fmt)
    app = create_app(engine, Settings(), load_profile(EXAMPLE), fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        answer = await ask(http)
    (trial,) = trials_of(engine)
    assert trial.sampling.max_tokens == 32
    assert answer["usage"]["completion_tokens_details"]["trial_tokens"] > 0
