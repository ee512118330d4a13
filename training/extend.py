"""Context extension: a stage of long texts that ends when a needle test is passed.

What the texts are is long_texts.py's matter; the test goes through the server (needle_gate.py). Sliding layers keep
their window, global layers have no positions: nothing but the weights changes from stage to stage.
"""

import asyncio
import json
import random
from pathlib import Path
from typing import Any, Protocol

from transformers.utils.logging import disable_progress_bar

from evals import needles as eval_needles
from evals import plots as eval_plots
from training.batches import Batch, ExampleSource, ExampleStream
from training.long_texts import drill_batch, long_batch
from training.needle_gate import NeedleGate
from training.progress import shown
from training.recipe import ExtendStage
from training.trainer import Position, StoppedError, Trainer

_COOLING = 0.3  # the share of the way to a test in which the rate falls,
_COOLED = 0.1  # and to what: settled weights are tested
_LOOK_SECONDS = 0.2


class GateNotPassedError(Exception):
    """A stage reached its bound of tokens, and the needle test was not passed; the message says where it failed."""


class Gate(Protocol):
    """What is needed of a needle test."""

    async def measure(self, families: tuple[str, ...], lengths: list[int], *, items: int, seed: int) -> dict[str, Any]:
        """The result of `twogear eval needles`, of the run's checkpoint."""


def train(trainer: Trainer, stage: ExtendStage) -> None:
    """The rest of the stage. Raises GateNotPassedError, StoppedError."""

    async def with_server() -> None:
        async with NeedleGate(trainer.checkpoint) as gate:
            await train_to_gate(trainer, stage, gate)

    asyncio.run(with_server())


async def train_to_gate(trainer: Trainer, stage: ExtendStage, gate: Gate) -> None:
    """Trains until the test is passed, or as long as the stage may be. Raises GateNotPassedError, StoppedError."""
    disable_progress_bar()  # transformers': one for every test
    trainer.model.train()
    if stage.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        trainer.model.gradient_checkpointing_disable()
    texts = LongTexts(trainer, stage)
    at = trainer.position
    while True:
        with shown(stage.name, stage.most_tokens, at.stage_tokens, hidden=not trainer.ranks.is_first) as show:
            while at.stage_tokens < next_gate(stage, at):
                rate = learning_rate(stage, at)
                found = trainer.step(texts.next(), rate)
                trainer.log({"length": stage.length, "learning_rate": rate} | found)
                show(at.stage_tokens)
                trainer.after_step()
                await asyncio.sleep(0)  # the engine's messages are read in between
        if not stage.gate_items:
            return
        trainer.save()
        passed, told = await _test(trainer, stage, gate)
        if passed:
            return
        if at.stage_tokens >= stage.most_tokens:
            raise GateNotPassedError(told)
        at.gates += 1


def next_gate(stage: ExtendStage, at: Position) -> int:
    """Tokens of the stage after which its next test is due."""
    return min(stage.least_tokens + at.gates * stage.gate_every, stage.most_tokens)


def learning_rate(stage: ExtendStage, at: Position) -> float:
    """Warm-up at the stage's start, and a fall towards every test, so that it finds settled weights."""
    warm = min(1.0, (at.stage_step + 1) / stage.warmup_steps)
    due = next_gate(stage, at)
    last = due - (stage.gate_every if at.gates else stage.least_tokens)
    left = (due - at.stage_tokens) / max(due - last, 1)
    return stage.learning_rate * warm * min(1.0, max(_COOLED, left / _COOLING))


class LongTexts:
    """What each step of a stage learns: long texts, and ordinary batches such that they have their share of tokens."""

    def __init__(self, trainer: Trainer, stage: ExtendStage) -> None:
        self._fmt, self._stage, self._at = trainer.fmt, stage, trainer.position
        self._seed = f"{trainer.recipe.seed}/{stage.name}"
        self._ordinary = ExampleStream(ExampleSource(stage.mix, trainer.fmt), self._seed, self._at)

    def next(self) -> dict[str, list[Batch]]:
        """Both have the same weight in the step."""
        return {"long": self.long_batches(), "short": self._short_batches()}

    def long_batches(self) -> list[Batch]:
        """A step's long texts; they depend on the recipe and the step only."""
        stage = self._stage
        rng = random.Random(f"{self._seed}/{self._at.stage_step}")
        batches: list[Batch] = []
        while sum(batch.ids.numel() for batch in batches) < stage.batch_tokens - stage.length // 2:
            if stage.drill_share and rng.random() < stage.drill_share:
                batches.append(drill_batch(self._fmt, stage.length, rng))
            else:
                batches.append(long_batch(self._fmt, stage.length, stage.questions, rng, stage.filler_counts))
        return batches

    def _short_batches(self) -> list[Batch]:
        """Ordinary batches, as many as bring their share of the stage's tokens up to the recipe's."""
        batches: list[Batch] = []
        at, share = self._at, self._stage.sft_share
        long_tokens = at.stage_tokens - at.short_tokens + self._stage.batch_tokens
        while share > 0 and at.short_tokens < share / (1 - share) * long_tokens:
            batch = self._ordinary.next(1.0)
            at.short_tokens += batch.ids.numel()
            batches.append(batch)
        return batches


async def _test(trainer: Trainer, stage: ExtendStage, gate: Gate) -> tuple[bool, str]:
    """Whether the stage's needle test is passed, and in words how it went; the map is kept and printed."""
    trainer.export()
    lengths = [min(stage.gate_from, stage.length)]
    while lengths[-1] < stage.length:
        lengths.append(lengths[-1] * 2)
    seed = trainer.recipe.seed * 1000 + trainer.position.step
    result: dict[str, Any] | None = None
    if trainer.ranks.is_first:
        asked = gate.measure(stage.gate_families, lengths, items=stage.gate_items, seed=seed)
        result = await _unless_stopped(trainer, asyncio.ensure_future(asked))
    result = trainer.ranks.from_first(result)
    if result is None:
        raise StoppedError
    path = trainer.folder / "needles" / f"{stage.name}-{trainer.position.step:06}.json"
    if trainer.ranks.is_first:
        _keep_map(result, path)
    summary = result["summary"]
    trainer.log({"length": stage.length, "needles": summary})
    told = (
        f"length {stage.length}: after {trainer.position.stage_tokens} tokens the worst cell of the needle test is "
        f"{summary['worst']:.1%}, not {stage.gate:.1%}; the map is in {path.with_suffix('.svg')}"
    )
    return summary["worst"] >= stage.gate, told


def _keep_map(result: dict[str, Any], path: Path) -> None:
    """Writes a test's result and its map, and prints it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    eval_plots.draw(result, path.with_suffix(".svg"))
    eval_needles.show(result)


async def _unless_stopped(trainer: Trainer, asked: "asyncio.Future[dict[str, Any]]") -> dict[str, Any] | None:
    """What the test finds; None where the run is asked to stop meanwhile, whose state is saved already."""
    while not asked.done():
        await asyncio.wait([asked], timeout=_LOOK_SECONDS)
        if trainer.stop():
            asked.cancel()
            return None
    return asked.result()
