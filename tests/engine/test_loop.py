"""What the engine's loop reports, over an engine that is scripted."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from engine.messages import Abort, FromEngine, Generate, PageGroup, PageNeed, Sampling, Shutdown, Step, ToEngine
from engine.vllm_internals.attach import Extends, Internals, Pages, Recovers
from engine.vllm_internals.steps import PlainSteps

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torch and vLLM deprecate of each other is not for these tests to fail on
    from engine import loop
    from engine.loop import EngineLoop


class Config:
    """With a vocabulary, and without adapters."""

    lora_config = None

    @property
    def model_config(self) -> "Config":
        return self

    def get_vocab_size(self) -> int:
        return 100


class BarrenEngine:
    """Takes requests, and steps without result."""

    vllm_config = Config()

    def add_request(self, *_args: Any, **_options: Any) -> str:
        return "own"

    def abort_request(self, _ids: list[str]) -> None:
        pass

    def step(self) -> list[Any]:
        return []


class ScriptedPages:
    """After each step, how far the requests are is the next of `progress`."""

    def __init__(self, progress: Sequence[object]) -> None:
        self._progress = iter(progress)
        self._now: object = None

    def has_work(self) -> bool:
        return True

    def requests(self) -> tuple[int, int]:
        return 1, 0

    def next_step(self) -> None:
        self._now = next(self._progress, self._now)

    def progress(self) -> object:
        return self._now

    def preemptions(self) -> int:
        return 0

    def count(self) -> tuple[PageGroup, ...]:
        return ()

    def needs(self) -> tuple[PageNeed, ...]:
        return ()


class Script:
    """A connection that has a list of messages for each round, and keeps what is sent."""

    def __init__(self, rounds: Sequence[list[ToEngine]], pages: ScriptedPages) -> None:
        self._rounds: Iterator[list[ToEngine]] = iter([*rounds, [Shutdown()]])
        self._pages = pages
        self.sent: list[FromEngine] = []

    def receive(self, _timeout: float | None) -> list[ToEngine]:
        self._pages.next_step()
        return next(self._rounds)

    def send(self, message: FromEngine) -> None:
        self.sent.append(message)


REQUEST = Generate("id", [1, 2], Sampling(max_tokens=9))


def steps_reported(
    monkeypatch: pytest.MonkeyPatch, progress: Sequence[object], rounds: Sequence[list[ToEngine]]
) -> int:
    monkeypatch.setattr(loop, "_REPORT_INTERVAL", -1.0)
    pages = ScriptedPages(progress)
    script = Script(rounds, pages)
    engine: Any = BarrenEngine()
    internals = Internals(cast("Pages", pages), cast("Extends", None), cast("Recovers", None), PlainSteps(engine), ())
    EngineLoop(engine, internals, (), cast("Any", script)).run()
    return sum(isinstance(message, Step) for message in script.sent)


def test_steps_that_take_a_prompt_on_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_reported(monkeypatch, [1, 2, 3, 4], [[REQUEST], [], [], []]) == 4


def test_steps_that_bring_nothing_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The front end then hears nothing of an engine that is busy, and takes it for hung."""
    assert steps_reported(monkeypatch, [1], [[REQUEST], [], [], []]) == 1


def test_the_end_of_a_request_is_reported_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client may have left while a step was long, and the front end waits for a sign since."""
    assert steps_reported(monkeypatch, [1], [[REQUEST], [], [Abort("id")], []]) == 2
