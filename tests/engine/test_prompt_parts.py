"""Long prompts in parts, by both schedulers: on a device whose steps take as long as it says, by a clock of its own.

The device computes one step behind another. A scheduler that runs ahead has given it the next one when the last one's
tokens are asked for, so that to schedule a step takes no time and says nothing of how long it takes.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.vllm_internals.attach import attach
from engine.vllm_internals.contract import PROMPT_PARTS

pytestmark = pytest.mark.usefixtures("vllm_ignoring_warnings")

SWITCHES = {True: "TWOGEAR_PROMPT_PART_MS", False: "TWOGEAR_MULTI_STEP_MS"}
LEAST = {True: 512, False: 128}
BUDGET, LONG = 8192, 30000
"""Tokens of a step, and of a long prompt."""


class Server:
    """An engine on a device with `fixed` seconds for a step and `each` for a token in it; `ahead`: as on a GPU."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, *, ahead: bool, fixed: float, each: float, **options: Any
    ) -> None:
        from benchmarks.host.fake_engine import AnsweringExecutor, _Done, fake_engine

        self.now = 0.0
        self.steps: list[dict[str, int]] = []
        self._asked = 0
        server = self

        class Device(AnsweringExecutor):
            end = 0.0

            def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
                if tokens := scheduler_output.total_num_scheduled_tokens:
                    server.steps.append(dict(scheduler_output.num_scheduled_tokens))
                    self.end = max(self.end, server.now) + fixed + each * tokens
                return super().execute_model(scheduler_output, non_block)

            def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
                output, end = super().sample_tokens(grammar_output), self.end

                def wait() -> Any:
                    server.now = max(server.now, end)
                    return output

                return _Done(wait) if non_block else wait()

        patch.setattr("engine.vllm_internals.prompt_parts.time", SimpleNamespace(monotonic=lambda: server.now))
        options.setdefault("max_num_batched_tokens", BUDGET)
        if not ahead:
            options["scheduler_cls"] = "engine.vllm_internals.scheduler.MultiStepScheduler"
        self._engine = fake_engine(folder, Device, ahead=ahead, **options)
        (self.parts,) = [path for path in attach(self._engine).fast_paths if path.name == PROMPT_PARTS.name]

    def ask(self, tokens: int, max_tokens: int) -> str:
        """The name of a new request."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        self._asked += 1
        ids = [self._asked, *(5 + number % 1000 for number in range(tokens - 1))]
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        return self._engine.add_request(f"r{self._asked}", tokens_input(ids), params)

    def run(self, steps: int = 2000) -> None:
        """Until all is answered, or for so many steps."""
        for _ in range(steps):
            if not self._engine.has_unfinished_requests():
                return
            self._engine.step()

    def unanswered(self) -> int:
        return self._engine.get_num_unfinished_requests()

    def read(self, name: str) -> dict[int, int]:
        """How many tokens each step had of a request's prompt, or of what it drew."""
        return {number: step[name] for number, step in enumerate(self.steps) if name in step}


@pytest.mark.parametrize("milliseconds", [40, 0])
@pytest.mark.parametrize("ahead", [True, False])
def test_a_short_request_is_answered_beside_a_long_prompt(
    ahead: bool, milliseconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCHES[ahead], str(milliseconds))
    server = Server(tmp_path, monkeypatch, ahead=ahead, fixed=0.005, each=1e-4, max_num_batched_tokens=2048)
    assert server.parts.on == (milliseconds > 0)
    long = server.ask(LONG, 1)
    server.run(3)
    came = len(server.steps)
    short = server.ask(20, 1)
    server.run()
    assert sum(server.read(long).values()) == LONG
    waited = min(server.read(short)) - came
    if milliseconds:
        assert waited <= 1
        assert max(server.read(long)) > came + 8
    else:  # vLLM's own: until the last of the prompt leaves room in a step
        assert waited > 8


@pytest.mark.parametrize(
    ("ahead", "each", "expected"),
    [
        (True, 1e-5, 1500),  # half of 40 ms, less 5, since another may come
        (True, 1e-4, LEAST[True]),
        (False, 1e-5, 1500),
        (False, 1e-4, 150),
        (False, 1e-3, LEAST[False]),
    ],
)
def test_a_part_takes_the_time_that_is_given(
    ahead: bool, each: float, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCHES[ahead], "40")
    server = Server(tmp_path, monkeypatch, ahead=ahead, fixed=0.005, each=each)
    server.ask(20, 400)
    server.run(2)
    long = server.ask(LONG, 1)
    server.run()
    parts = list(server.read(long).values())
    assert sum(parts) == LONG
    assert parts[-3] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_prompt_that_is_alone_is_read_in_long_steps(
    ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCHES[ahead], "40")
    server = Server(tmp_path, monkeypatch, ahead=ahead, fixed=0.005, each=1e-5)
    long = server.ask(LONG, 1)
    server.run()
    first, *_, before_last, _ = server.read(long).values()
    assert first == 8 * LEAST[ahead]
    assert before_last == BUDGET


@pytest.mark.parametrize("ahead", [True, False])
def test_prompts_that_are_not_to_be_chunked_are_read_whole(
    ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of vLLM there is none scheduled that is longer than a step's limit: with ours it would wait for ever."""
    monkeypatch.setenv(SWITCHES[ahead], "40")
    options = {"enable_chunked_prefill": False, "max_model_len": BUDGET}
    server = Server(tmp_path, monkeypatch, ahead=ahead, fixed=0.005, each=1e-4, **options)
    assert (server.parts.on, server.parts.reason) == (False, "prompts are not to be chunked")
    long = server.ask(8000, 2)
    server.run(20)
    assert server.unanswered() == 0
    assert next(iter(server.read(long).values())) == 8000
    short, long = server.ask(20, 2), server.ask(8001, 2)
    server.run(20)
    assert server.unanswered() == 0
    assert [max(server.read(name).values()) for name in (short, long)] == [20, 8001]


@pytest.mark.parametrize("ahead", [True, False])
def test_the_switch_leaves_them_to_vllm(ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCHES[ahead], "0")
    server = Server(tmp_path, monkeypatch, ahead=ahead, fixed=0.005, each=1e-4)
    assert (server.parts.on, server.parts.reason) == (False, f"{SWITCHES[ahead]} is 0")
    server.ask(20, 400)
    server.run(2)
    long = server.ask(LONG, 1)
    server.run()
    assert next(iter(server.read(long).values())) >= BUDGET - 1


def test_a_step_that_failed_says_nothing_of_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens never come; the time of the one behind it is from the last that were there."""
    from engine.vllm_internals.prompt_parts import PromptParts

    clock = [0.0]
    monkeypatch.setattr("engine.vllm_internals.prompt_parts.time", SimpleNamespace(monotonic=lambda: clock[0]))
    config = SimpleNamespace(long_prefill_token_threshold=0)
    scheduler: Any = SimpleNamespace(
        max_num_scheduled_tokens=BUDGET, scheduler_config=config, running=[], get_request_counts=lambda: (1, 1)
    )
    parts = PromptParts(scheduler, 0.04, 128)
    limits: list[int] = []

    def step(tokens: int) -> Any:
        def schedule(_throttle: bool) -> Any:
            limits.append(config.long_prefill_token_threshold)
            return SimpleNamespace(num_scheduled_tokens={"r": tokens}, total_num_scheduled_tokens=tokens)

        return parts.schedule(schedule, False)

    step(1000)  # fails
    clock[0] = 100.0
    second, third, decode = step(400), step(400), step(1)
    for output in (second, third, decode):
        clock[0] += 0.02
        parts.done(output)
    step(1)
    assert limits[:4] == [128] * 4
    assert limits[4] == 800  # 40 ms at 400 tokens in 20
    assert config.long_prefill_token_threshold == 0
