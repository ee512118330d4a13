"""Supervised fine-tuning, and pretraining before it: a stage's loop over batches of both modes, and its checks.

What a batch holds is batches.py's matter.
"""

import random

import torch
from transformers import Exaone4ForCausalLM

from training.batches import IGNORED, ExampleSource, ExampleStream, collate
from training.modes import Mode
from training.progress import shown
from training.recipe import SftStage
from training.trainer import Trainer, forward_loss

_CHECK_ITEMS = 32
_MODES: tuple[Mode, ...] = ("standard", "reasoning")


def learning_rate(stage: SftStage, step: int, progress: float) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last `decay` share of the stage."""
    warm = min(1.0, (step + 1) / stage.warmup_steps)
    cool = min(1.0, max(0.0, (1.0 - progress) / stage.decay))
    return stage.learning_rate * warm * cool


@torch.no_grad()
def whole_answers(model: Exaone4ForCausalLM, source: ExampleSource, seed: int) -> dict[str, float]:
    """Share of held-out items whose every learnt token is the likeliest, by `family/mode`; JSON, tools, needles too.

    That is what greedy decoding gets right word for word, from one forward pass.
    """
    model.eval()
    shares = {}
    for name in [*source.mix.families, "json", "tools", "needles"]:
        for mode in _MODES:
            rng = random.Random(f"check/{seed}/{name}")
            batch = collate([source.held_out(name, mode, rng) for _ in range(_CHECK_ITEMS)], mode)
            _, correct = forward_loss(model, batch)
            wrong = torch.zeros_like(batch.labels)
            wrong[batch.labels != IGNORED] = (~correct).long().cpu()
            shares[f"{name}/{mode}"] = float((wrong.sum(1) == 0).float().mean())
    model.train()
    return shares


def train(trainer: Trainer, stage: SftStage) -> None:
    """The rest of the stage's tokens. Raises StoppedError."""
    at, every = trainer.position, trainer.recipe.check_every
    source = ExampleSource(stage.mix, trainer.fmt)
    stream = ExampleStream(source, f"{trainer.recipe.seed}/{stage.name}", at, stage.learns)
    losses: dict[Mode, list[float]] = {mode: [] for mode in _MODES}
    with shown(stage.name, stage.tokens, at.stage_tokens, hidden=not trainer.ranks.is_first) as show:
        while at.stage_tokens < stage.tokens:
            progress = at.stage_tokens / stage.tokens
            batch = stream.next(progress)
            rate = learning_rate(stage, at.stage_step, progress)
            losses[batch.mode].append(trainer.step({"loss": [batch]}, rate)["loss"])
            show(at.stage_tokens)
            if at.stage_step % every == 0 or at.stage_tokens >= stage.tokens:
                _check(trainer, source, stage, losses, rate)
                losses = {mode: [] for mode in _MODES}
            trainer.after_step()


def _check(
    trainer: Trainer, source: ExampleSource, stage: SftStage, losses: dict[Mode, list[float]], rate: float
) -> None:
    """Logs the mean losses since the last check, and the share of whole answers."""
    means = {mode: round(sum(values) / len(values), 4) for mode, values in losses.items() if values}
    shares = whole_answers(trainer.model, source, trainer.recipe.seed)
    rounded = {key: round(share, 3) for key, share in shares.items()}
    trainer.log({"learning_rate": rate, "loss": means, "whole_answers": rounded})
    told = {mode: [share for key, share in shares.items() if key.endswith(mode)] for mode in _MODES}
    right = ", ".join(f"{mode} {sum(values) / len(values):.1%}" for mode, values in told.items())
    at = trainer.position
    trainer.tell(
        f"{stage.name}: {at.stage_tokens:,} of {stage.tokens:,} tokens, {at.seconds / 60:.0f} minutes; "
        f"loss {means}; whole answers: {right}"
    )
