"""Context extension: a stage ends with the needle test, resumes, and fails with a map."""

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from evals.needles import Outcome, plan, summarize
from training import recipe as recipes
from training.extend import GateNotPassedError, LongTexts, learning_rate, train_to_gate
from training.recipe import ExtendStage
from training.trainer import Position, StoppedError, Trainer

from .conftest import SMOKE, with_tokenizer

CPU = torch.device("cpu")
Start = Callable[..., Trainer]


class Measured:
    """In the gate's place: every cell of a test has the next of `scores`; keeps what was asked."""

    def __init__(self, *scores: float) -> None:
        self._scores = list(scores)
        self.lengths: list[list[int]] = []

    async def measure(self, families: tuple[str, ...], lengths: list[int], *, items: int, seed: int) -> dict[str, Any]:
        self.lengths.append(lengths)
        score = self._scores.pop(0)
        outcomes = [
            Outcome(needle.family, length, needle.depth, length, needle.question, needle.answer, "", score)
            for needle, length in plan(families, lengths, items, seed)
        ]
        return summarize({}, outcomes, items=items, seed=seed)


@pytest.fixture
def start(small_tokenizer: Path, tmp_path: Path) -> Start:
    """A run that stands at the smoke recipe's second stage of extension; `fields` change that stage."""

    def begin(
        run: str = "run", *, save_every: int = 20, stop: Callable[[], bool] = lambda: False, **fields: Any
    ) -> Trainer:
        smoke = recipes.load(SMOKE)
        stages = tuple(
            msgspec.structs.replace(one, **{"gate": 0.9, **fields}) if one.name == "extend-2k" else one
            for one in smoke.stages
        )
        recipe = msgspec.structs.replace(smoke, stages=stages)
        trainer = Trainer(recipe, with_tokenizer(tmp_path / run, small_tokenizer), CPU, stop=stop)
        if trainer.position == Position():
            trainer.position.stage = 3
        return trainer

    return begin


def train(trainer: Trainer, gate: Any) -> None:
    asyncio.run(train_to_gate(trainer, stage_of(trainer), gate))


def stage_of(trainer: Trainer) -> ExtendStage:
    stage = trainer.stage
    assert isinstance(stage, ExtendStage)
    return stage


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def records(trainer: Trainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_trains_on_until_its_test_is_passed(start: Start) -> None:
    run = start()
    gate = Measured(0.5, 0.95)
    train(run, gate)
    assert gate.lengths == [[256, 512, 1024, 2048]] * 2
    tests = [(one["length"], one["stage_tokens"]) for one in records(run) if "needles" in one]
    least, more = stage_of(run).least_tokens, stage_of(run).most_tokens
    assert least <= tests[0][1] < more <= tests[1][1]
    assert all({"long", "short"} <= one.keys() for one in records(run) if one["step"] == 1 and "needles" not in one)
    assert "2K" in max((run.folder / "needles").glob("extend-2k-*.svg")).read_text()


def test_a_start_that_passes_is_not_trained(start: Start) -> None:
    run = start(least_tokens=0)
    train(run, Measured(1.0))
    assert run.position.step == 0


def test_at_its_bound_a_stage_fails_with_the_map_and_does_not_train_on(start: Start) -> None:
    run = start()
    with pytest.raises(GateNotPassedError, match=r"length 2048: .* 12\.5%, not 90\.0%") as failure:
        train(run, Measured(0.0, 0.125))
    assert Path(str(failure.value).rpartition(" ")[2]).exists()
    steps = run.position.step
    again = start()
    with pytest.raises(GateNotPassedError):
        train(again, Measured(0.0))
    assert again.position.step == steps


def test_without_questions_a_stage_ends_untested(start: Start) -> None:
    run = start(gate_items=0)
    train(run, Measured())
    assert stage_of(run).least_tokens <= run.position.stage_tokens < stage_of(run).most_tokens


def test_an_interrupted_stage_goes_on_where_it_stopped(start: Start) -> None:
    whole = start("whole")
    train(whole, Measured(1.0))
    assert whole.position.step == 2

    stopped = start("parts")
    stopped.stop = lambda: stopped.position.step == 1
    with pytest.raises(StoppedError):
        train(stopped, Measured())
    resumed = start("parts")
    assert [one["step"] for one in records(resumed)] == [1]
    train(resumed, Measured(1.0))
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.position.stage_tokens == whole.position.stage_tokens


def test_a_test_under_way_is_given_up_when_the_run_is_to_stop(start: Start) -> None:
    class Endless:
        cancelled = asked = False

        async def measure(self, *_: Any, **__: Any) -> dict[str, Any]:
            self.asked = True
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            return {}

    gate = Endless()
    run = start(least_tokens=0, stop=lambda: gate.asked)
    with pytest.raises(StoppedError):
        train(run, gate)
    assert gate.cancelled


def test_the_rate_warms_up_and_falls_towards_every_test(start: Start) -> None:
    fields = {"batch_tokens": 4096, "least_tokens": 10_000, "gate_every": 5_000, "most_tokens": 90_000}
    stage = stage_of(start(**fields))
    assert learning_rate(stage, Position(stage_step=0)) == pytest.approx(0.5e-3)  # two steps of warm-up
    for gates, begin, end in ((0, 0, 10_000), (1, 10_000, 15_000), (2, 15_000, 20_000)):
        rates = [
            learning_rate(stage, Position(stage_step=100, gates=gates, stage_tokens=tokens))
            for tokens in range(begin, end + 1, 500)
        ]
        assert rates[0] == pytest.approx(1e-3)
        assert rates[-1] == pytest.approx(1e-4)
        assert all(later <= earlier for earlier, later in pairwise(rates))


def test_checkpointing_changes_no_gradient(start: Start) -> None:
    found = []
    for checkpointing in (False, True):
        run = start(f"run-{checkpointing}")
        run.model.train()
        if checkpointing:
            run.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        run.backward(LongTexts(run, stage_of(run)).long_batches())
        found.append(run.model.model.embed_tokens.weight.grad)
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(found[0], found[1])
