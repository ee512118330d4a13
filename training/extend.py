"""Context extension: stages of longer and longer texts, each of which ends when the needle test is passed.

What the texts are is long_texts.py's matter; the test goes through the server (needle_gate.py). Sliding layers keep
their window, global layers have no positions: nothing but the weights changes from stage to stage.
"""

import asyncio
import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import Exaone4ForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks import eval_needles, eval_plots
from chat_templates.format import ChatFormat
from training import attention
from training import model as model_files
from training import tokenizer as tokenizer_files
from training.batches import Batch, ExampleSource, chunk
from training.long_texts import drill_batch, long_batch
from training.needle_gate import NeedleGate
from training.optimizer import Optimizer
from training.recipe import ExtendStage, Recipe
from training.run_folder import RunFolder
from training.sft import forward_loss

_CLIP = 1.0
_COOLING = 0.3  # the share of the way to a test in which the rate falls,
_COOLED = 0.1  # and to what: settled weights are tested
_POSITION = ("stage", "step", "tokens", "stage_step", "short_tokens", "gates", "chunk", "used")


class GateNotPassedError(Exception):
    """A stage reached its bound of tokens, and the needle test was not passed; the message says where it failed."""


class ExtendRun:
    """One run in a folder: state, metrics, the needle tests' results, and the finished checkpoint.

    Of the stage under way, number `stage`, `tokens` lie behind, `short_tokens` of them in ordinary batches, the next
    of which is number `used` of the chunk `chunk`. `step` counts from the run's start, `stage_step` from the stage's.
    """

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device) -> None:
        assert recipe.extend is not None
        self.recipe = recipe
        self.extend = recipe.extend
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        (folder / "needles").mkdir(exist_ok=True)
        start = Path(self.extend.start)
        for name in tokenizer_files.FILES:
            shutil.copy(start / name, self.checkpoint)
        self.fmt = ChatFormat.from_folder(self.checkpoint)
        self.source = ExampleSource(recipe.sft, self.fmt)
        self.model: Exaone4ForCausalLM = Exaone4ForCausalLM.from_pretrained(
            start, dtype=torch.float32, attn_implementation=attention.NAME
        )
        model_files.move(self.model, device)
        self.optimizer = Optimizer(self.model, weight_decay=recipe.sft.weight_decay)
        self.stage = self.step = self.tokens = self.stage_step = self.short_tokens = 0
        self.gates = self.chunk = self.used = 0
        self.seconds = 0.0
        self._ordinary: list[Batch] = []
        self._kept = RunFolder(folder)
        for name, value in self._kept.resume(self.model, self.optimizer).items():
            setattr(self, name, value)

    @property
    def is_finished(self) -> bool:
        """Whether every stage's test is passed."""
        return self.stage == len(self.extend.stages)

    def run(self) -> None:
        """Trains until every stage has passed, and exports the checkpoint. Raises GateNotPassedError."""
        if not self.is_finished:
            asyncio.run(self._run_with_server())
        self.export(Path(self.extend.output))

    async def _run_with_server(self) -> None:
        async with NeedleGate(self.checkpoint) as gate:
            await self.train(gate)

    async def train(self, gate: NeedleGate) -> None:
        """The remaining stages."""
        disable_progress_bar()  # transformers': one for every test
        self.model.train()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            while not self.is_finished:
                stage = self.extend.stages[self.stage]
                bar = progress.add_task(f"extend {stage.length}", total=stage.most_tokens, completed=self.tokens)
                await self._train_to_gate(stage, progress, bar)
                self.save_state()
                passed, found = await self._test(gate, stage)
                progress.remove_task(bar)
                if not passed and self.tokens >= stage.most_tokens:
                    raise GateNotPassedError(found)
                self._go_on(passed=passed)
                self.save_state()

    async def _train_to_gate(self, stage: ExtendStage, progress: Progress, bar: TaskID) -> None:
        """Steps until the next test is due."""
        if stage.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()
        while self.tokens < self.next_gate(stage):
            self._train_step(stage)
            progress.update(bar, completed=min(self.tokens, stage.most_tokens))
            if self.step % self.extend.save_every == 0:
                self.save_state()
            await asyncio.sleep(0)  # the engine's messages are read in between

    def next_gate(self, stage: ExtendStage) -> int:
        """Tokens of the stage after which its next test is due."""
        return min(stage.least_tokens + self.gates * stage.gate_every, stage.most_tokens)

    def learning_rate(self, stage: ExtendStage) -> float:
        """Warm-up at the stage's start, and a fall towards every test, so that it finds settled weights."""
        warm = min(1.0, (self.stage_step + 1) / self.extend.warmup_steps)
        due = self.next_gate(stage)
        last = due - (stage.gate_every if self.gates else stage.least_tokens)
        left = (due - self.tokens) / max(due - last, 1)
        return stage.learning_rate * warm * min(1.0, max(_COOLED, left / _COOLING))

    def _train_step(self, stage: ExtendStage) -> None:
        """One step of the optimizer; long texts and ordinary batches have the same weight in it."""
        started = time.monotonic()
        rate = self.learning_rate(stage)
        self.optimizer.set_rate(rate)
        parts = {"long": self._long_batches(stage), "short": self._short_batches(stage)}
        record: dict[str, Any] = {"length": stage.length, "learning_rate": rate}
        for name, batches in parts.items():
            if batches:
                record[name], record[f"{name}_right"] = self._backward(batches)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimizer.step()
        self.step += 1
        self.stage_step += 1
        self.seconds += time.monotonic() - started
        self._kept.log({"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 1)} | record)

    def _backward(self, batches: list[Batch]) -> tuple[float, float]:
        """Adds the gradient of the batches' mean loss; that, and the share of learnt tokens that were the likeliest."""
        total, right = 0.0, []
        for batch in batches:
            loss, correct = forward_loss(self.model, batch)
            (loss / len(batches)).backward()
            total += loss.item() / len(batches)
            right.append(correct.cpu())
            self.tokens += batch.ids.numel()
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is no longer finite at step {self.step}; lower learning_rate")
        return round(total, 5), round(float(torch.cat(right).float().mean()), 4)

    def _long_batches(self, stage: ExtendStage) -> list[Batch]:
        """A step's long texts; they depend on the recipe and the step only."""
        rng = random.Random(f"extend/{self.recipe.seed}/{stage.length}/{self.stage_step}")
        batches: list[Batch] = []
        while sum(batch.ids.numel() for batch in batches) < stage.batch_tokens - stage.length // 2:
            if stage.drill_share and rng.random() < stage.drill_share:
                batches.append(drill_batch(self.fmt, stage.length, rng))
            else:
                batches.append(long_batch(self.fmt, stage.length, self.extend.questions, rng, stage.filler_counts))
        return batches

    def _short_batches(self, stage: ExtendStage) -> list[Batch]:
        """Ordinary batches, as many as bring their share of the stage's tokens up to the recipe's."""
        batches: list[Batch] = []
        share = self.extend.sft_share
        long_tokens = self.tokens - self.short_tokens + stage.batch_tokens
        while share > 0 and self.short_tokens < share / (1 - share) * long_tokens:
            batch = self._next_short()
            self.short_tokens += batch.ids.numel()
            batches.append(batch)
        return batches

    def _next_short(self) -> Batch:
        """The next ordinary batch from where the run stands; none that fine-tuning has seen."""
        if not self._ordinary:
            self._ordinary = list(chunk(self.source, self.recipe.sft, -1 - self.recipe.seed, self.chunk, 1.0))
        batch = self._ordinary[self.used]
        self.used += 1
        if self.used == len(self._ordinary):
            self.chunk, self.used, self._ordinary = self.chunk + 1, 0, []
        return batch

    async def _test(self, gate: NeedleGate, stage: ExtendStage) -> tuple[bool, str]:
        """Whether the stage's needle test is passed, and in words how it went; the map is kept and printed."""
        model_files.save(self.model, self.checkpoint)
        lengths = [self.extend.stages[0].length]
        while lengths[-1] < stage.length:
            lengths.append(lengths[-1] * 2)
        seed = self.recipe.seed * 1000 + self.step
        families = self.extend.gate_families
        result = await gate.measure(families, lengths, items=self.extend.gate_items, seed=seed)
        path = self.folder / "needles" / f"{stage.length}-{self.step:06}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        eval_plots.draw(result, path.with_suffix(".svg"))
        eval_needles.show(result)
        summary = result["summary"]
        self._kept.log({"step": self.step, "tokens": self.tokens, "length": stage.length, "needles": summary})
        found = (
            f"length {stage.length}: after {self.tokens} tokens the worst cell of the needle test is "
            f"{summary['worst']:.1%}, not {self.extend.gate:.1%}; the map is in {path.with_suffix('.svg')}"
        )
        return summary["worst"] >= self.extend.gate, found

    def _go_on(self, *, passed: bool) -> None:
        """To the next stage, or to more training in this one."""
        if not passed:
            self.gates += 1
            return
        self.stage += 1
        self.tokens = self.stage_step = self.short_tokens = self.gates = 0

    def save_state(self) -> None:
        """Writes what a later start resumes from."""
        position = {name: getattr(self, name) for name in ("seconds", *_POSITION)}
        self._kept.save(self.model, self.optimizer, position)

    def export(self, output: Path) -> None:
        """Writes the checkpoint folder; in it under `training/` the start's records, the metrics and the last maps."""
        record = output / "training"
        record.mkdir(parents=True, exist_ok=True)
        before = Path(self.extend.start) / "training"
        if before.is_dir() and before.resolve() != record.resolve():
            shutil.copytree(before, record, dirs_exist_ok=True)
        shutil.copy(self._kept.metrics, record / "extend.jsonl")
        for stage in self.extend.stages:
            last = max((self.folder / "needles").glob(f"{stage.length}-*.svg"))
            shutil.copy(last, record / f"needles-{stage.length}.svg")
        for name in tokenizer_files.FILES:
            shutil.copy(self.checkpoint / name, output)
        model_files.save(self.model, output)
