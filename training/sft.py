"""Supervised fine-tuning on both modes together: the loop, its checkpoints, and the checks along the way.

What a batch holds is batches.py's matter, what the model looks like model.py's.
"""

import math
import random
import shutil
import time
from pathlib import Path

import msgspec
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import Exaone4ForCausalLM

from chat_templates.format import ChatFormat
from training import model as model_files
from training import tokenizer as tokenizer_files
from training.batches import IGNORED, Batch, ExampleSource, chunk, collate
from training.fused_layer import hidden_states
from training.modes import Mode
from training.optimizer import Optimizer
from training.plot import draw_curve
from training.recipe import Recipe, SftRecipe
from training.run_folder import RunFolder

_CHECK_ITEMS = 32
_CLIP = 1.0
_MODES: tuple[Mode, ...] = ("standard", "reasoning")


def learning_rate(recipe: SftRecipe, step: int, progress: float) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last `decay` share of the run."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    cool = min(1.0, max(0.0, (1.0 - progress) / recipe.decay))
    return recipe.learning_rate * warm * cool


def forward_loss(model: Exaone4ForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the learnt tokens, and the (learnt,) predictions' correctness."""
    ids, labels = batch.ids.to(model.device), batch.labels.to(model.device)
    counts = None if batch.counts is None else batch.counts.to(model.device)
    learnt = labels != IGNORED
    with torch.autocast(model.device.type, torch.bfloat16):
        logits = model.lm_head(hidden_states(model, ids, learnt, counts)).float()  # (learnt, V)
    targets = labels[learnt]
    return torch.nn.functional.cross_entropy(logits, targets), logits.argmax(-1) == targets


@torch.no_grad()
def whole_answers(model: Exaone4ForCausalLM, source: ExampleSource, recipe: SftRecipe, seed: int) -> dict[str, float]:
    """Share of held-out items whose every learnt token is the likeliest, by `family/mode`; JSON, tools, needles too.

    That is what greedy decoding gets right word for word, from one forward pass.
    """
    model.eval()
    shares = {}
    for name in [*recipe.families, "json", "tools", "needles"]:
        for mode in _MODES:
            rng = random.Random(f"check/{seed}/{name}")
            batch = collate([source.held_out(name, mode, rng) for _ in range(_CHECK_ITEMS)], mode)
            _, correct = forward_loss(model, batch)
            wrong = torch.zeros_like(batch.labels)
            wrong[batch.labels != IGNORED] = (~correct).long().cpu()
            shares[f"{name}/{mode}"] = float((wrong.sum(1) == 0).float().mean())
    model.train()
    return shares


class SftRun:
    """One run in a folder: state, metrics, and the finished checkpoint."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device) -> None:
        self.recipe = recipe
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._prepare_tokenizer()
        fmt = ChatFormat.from_folder(folder)
        self.source = ExampleSource(recipe.sft, fmt)
        config = model_files.build_config(recipe.model, eos_token_id=fmt.end_of_turn_id, pad_token_id=0, bos_token_id=1)
        self.model = model_files.build(config, recipe.seed)
        if recipe.sft.start:
            model_files.start_from(self.model, Path(recipe.sft.start))
        model_files.move(self.model, device)
        self.optimizer = Optimizer(self.model, weight_decay=recipe.sft.weight_decay)
        self._kept = RunFolder(folder)
        position = self._kept.resume(self.model, self.optimizer)
        self.step: int = position.get("step", 0)
        self.tokens: int = position.get("tokens", 0)
        self.chunk: int = position.get("chunk", 0)
        self.seconds: float = position.get("seconds", 0.0)

    @property
    def progress(self) -> float:
        """The share of the recipe's tokens that is behind us."""
        return min(1.0, self.tokens / self.recipe.sft.tokens)

    @property
    def is_finished(self) -> bool:
        """Whether the recipe's tokens are behind us."""
        return self.tokens >= self.recipe.sft.tokens

    def _prepare_tokenizer(self) -> None:
        if (self.folder / "tokenizer.json").exists():
            return
        if self.recipe.sft.start is not None:
            for name in tokenizer_files.FILES:
                shutil.copy(Path(self.recipe.sft.start) / name, self.folder)
            return
        trained = tokenizer_files.train(self.recipe.model.vocabulary_size, self.recipe.seed)
        tokenizer_files.save(trained, self.folder)

    def save_state(self) -> None:
        """Writes what a later start resumes from."""
        position = {"step": self.step, "tokens": self.tokens, "chunk": self.chunk, "seconds": self.seconds}
        self._kept.save(self.model, self.optimizer, position)

    def _train_step(self, batch: Batch) -> float:
        self.optimizer.set_rate(learning_rate(self.recipe.sft, self.step, self.progress))
        loss, _ = forward_loss(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimizer.step()
        self.step += 1
        self.tokens += batch.ids.numel()
        return loss.item()

    def _check(self, losses: dict[Mode, list[float]]) -> None:
        means = {mode: sum(values) / len(values) for mode, values in losses.items() if values}
        shares = whole_answers(self.model, self.source, self.recipe.sft, self.recipe.seed)
        record = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds),
            "learning_rate": learning_rate(self.recipe.sft, self.step, self.progress),
            "loss": {mode: round(loss, 4) for mode, loss in means.items()},
            "whole_answers": {key: round(share, 3) for key, share in shares.items()},
        }
        self._kept.log(record)
        if not all(math.isfinite(loss) for loss in means.values()):
            raise FloatingPointError(f"the loss is no longer finite at step {self.step}; lower learning_rate")

    def run(self) -> None:
        """Trains to the recipe's number of tokens, checking and saving on the way, and exports the checkpoint."""
        sft = self.recipe.sft
        self.model.train()
        losses: dict[Mode, list[float]] = {mode: [] for mode in _MODES}
        columns = (TextColumn("sft"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            bar = progress.add_task("sft", total=sft.tokens, completed=self.tokens)
            while self.tokens < sft.tokens:
                before, started = self.step, time.monotonic()
                for batch in chunk(self.source, sft, self.recipe.seed, self.chunk, self.progress):
                    losses[batch.mode].append(self._train_step(batch))
                    progress.update(bar, completed=min(self.tokens, sft.tokens))
                self.chunk += 1
                self.seconds += time.monotonic() - started
                if self.step // sft.evaluate_every > before // sft.evaluate_every or self.tokens >= sft.tokens:
                    self._check(losses)
                    losses = {mode: [] for mode in _MODES}
                if self.step // sft.save_every > before // sft.save_every:
                    self.save_state()
        self.save_state()
        self.export(Path(self.recipe.output))

    def export(self, output: Path) -> None:
        """Writes the checkpoint folder, the run's recipe, metrics and curve in it under `training/`."""
        record = output / "training"
        record.mkdir(parents=True, exist_ok=True)
        (record / "metrics.jsonl").write_bytes(self._kept.metrics.read_bytes())
        (record / "recipe.json").write_bytes(msgspec.json.format(msgspec.json.encode(self.recipe), indent=1) + b"\n")
        draw_curve(self._kept.metrics, record / "curve.svg")
        for name in tokenizer_files.FILES:
            shutil.copy(self.folder / name, output)
        model_files.save(self.model, output)
