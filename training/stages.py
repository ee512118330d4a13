"""A run's stages in their order, from fresh weights to the finished checkpoint, in one piece or in several."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from training import extend, memory, sft
from training.agapo.run import AgapoRun
from training.recipe import ExtendStage, MeanStage, Recipe, SftStage
from training.trainer import StoppedError, Trainer


class Stopping:
    """Whether a run is to stop: SIGINT or SIGTERM came, or its `hours` are over (None: never)."""

    def __init__(self, hours: float | None = None) -> None:
        self._end = None if hours is None else time.monotonic() + hours * 3600
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Whether."""
        return self.signal is not None or (self._end is not None and time.monotonic() >= self._end)

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Meanwhile the first signal is kept in mind; a second one does what it does elsewhere."""

        def heed(number: int, _: object) -> None:
            self.signal = number
            for one, handler in before.items():
                signal.signal(one, handler)

        before = {one: signal.signal(one, heed) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def prepare(threads: int | None) -> torch.device:
    """The device that is trained on: a GPU where there is one, each process its own, else the CPU with the threads."""
    memory.keep()
    if threads:
        torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run(trainer: Trainer, until: str | None = None) -> None:
    """The stages that are left, up to `until` where one is named.

    Raises GateNotPassedError, StoppedError, and UsageError where a stage is not for so many processes.
    """
    names = [stage.name for stage in trainer.recipe.stages]
    last = len(names) - 1 if until is None else names.index(until)
    trainer.ranks.check(trainer.recipe.stages[trainer.position.stage : last + 1])
    while trainer.position.stage <= last:
        if trainer.is_stopping():
            raise StoppedError
        _train(trainer)
        trainer.end_stage()
        done = trainer.finished[-1]
        trainer.tell(f"{done.stage}: finished, {done.tokens:,} tokens in {done.seconds / 60:.1f} minutes")
    if trainer.ranks.from_first(not (trainer.checkpoint / "config.json").exists()):
        trainer.export()


def _train(trainer: Trainer) -> None:
    """The rest of the stage that is under way."""
    stage = trainer.stage
    match stage:
        case SftStage():
            trainer.model.train()
            sft.train(trainer, stage)
        case ExtendStage():
            extend.train(trainer, stage)
        case MeanStage():
            trainer.take_mean(stage)


def run_agapo(recipe: Recipe, folder: Path, device: torch.device) -> None:
    """Reinforcement learning, as the recipe's [agapo] has it."""
    assert recipe.agapo is not None
    AgapoRun(recipe.agapo, recipe.seed, folder / recipe.agapo.method, device).run()
