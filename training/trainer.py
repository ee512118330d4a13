"""A training run's model, optimizer and position, and the one file that it goes on from on any machine.

What a stage learns from is its own matter (sft.py, extend.py); which stage is next is stages.py's.
"""

import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.distributed.fsdp import FSDPModule
from transformers import Exaone4ForCausalLM

from chat_templates.format import ChatFormat
from server.cli_errors import UsageError
from training import model as model_files
from training import ranks as processes
from training import tokenizer as tokenizer_files
from training.average import mean
from training.batches import IGNORED, Batch
from training.fused_layer import learnt_logits
from training.optimizer import Optimizer
from training.plot import draw_curve
from training.ranks import Ranks
from training.recipe import MeanStage, Recipe, SftStage, Stage, scaled
from training.run_folder import RunFolder

_CLIP = 1.0
_WITHOUT = "they run by PyTorch's operations, since our fused layer reads whole weights, and they are not compiled"


class StoppedError(Exception):
    """The run was asked to stop, and has saved its state."""


@dataclass
class Position:
    """Where a run stands: `step`, `tokens` and `seconds` from its start, the others in stage number `stage`.

    The next ordinary batch is number `used` of the chunk number `chunk`, which was drawn at the progress `drawn_at`.
    Of a stage of context extension `short_tokens` lay in ordinary batches, and `gates` tests were not passed.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stage: int = 0
    stage_step: int = 0
    stage_tokens: int = 0
    chunk: int = 0
    used: int = 0
    drawn_at: float = 0.0
    short_tokens: int = 0
    gates: int = 0

    def next_stage(self) -> "Position":
        """The start of the stage after this one."""
        return Position(self.step, self.tokens, self.seconds, self.stage + 1)


@dataclass
class Finished:
    """A stage that is done, for the record: what was trained, how long, by what."""

    stage: str
    tokens: int
    seconds: float
    scale: float
    made_by: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """One run in a folder, `scale` times as long as the recipe has it.

    `stop` is asked after every step: where it says so, the state is saved and StoppedError raised. Raises UsageError
    for a folder with a run of another recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        device: torch.device,
        *,
        scale: float = 1.0,
        stop: Callable[[], bool] = lambda: False,
        ranks: Ranks | None = None,
    ) -> None:
        self.whole, self.scale, self.recipe = recipe, scale, scaled(recipe, scale)
        self.folder = folder
        self.stop = stop
        self.ranks = ranks or Ranks()
        self.files = RunFolder(folder, self.ranks)
        folder.mkdir(parents=True, exist_ok=True)
        self._prepare_tokenizer()
        self.fmt = ChatFormat.from_folder(folder)
        config = model_files.build_config(
            recipe.model, eos_token_id=self.fmt.end_of_turn_id, pad_token_id=0, bos_token_id=1
        )
        self.model: Exaone4ForCausalLM = model_files.build(config, recipe.seed)
        if self.ranks.size == 1:
            model_files.move(self.model, device)
        else:
            self.ranks.shard(self.model, device)
            self.tell(f"{self.ranks.size} processes, each with a part of every layer's weights: {_WITHOUT}")
        self.optimizer = Optimizer(self.model, weight_decay=recipe.weight_decay)
        kept = self.files.resume(self.model, self.optimizer)
        self.position = Position(**kept.get("at", {}))
        self.ends: dict[str, dict[str, torch.Tensor]] = kept.get("ends", {}) if self.ranks.is_first else {}
        self.finished = [Finished(**one) for one in kept.get("finished", ())]
        self._counted = time.monotonic()

    def _prepare_tokenizer(self) -> None:
        """Takes the state's, or the one in the folder, or trains it."""
        if self.files.state.exists():
            kept = torch.load(self.files.state, map_location="cpu", weights_only=True)["position"]
            if kept["digest"] != self.whole.digest:
                raise UsageError(f"{self.files.state} is of another recipe ({kept['digest']}); name another folder")
            if self.ranks.is_first:
                for name, text in kept["tokenizer"].items():
                    (self.folder / name).write_text(text)
        elif self.ranks.is_first and not (self.folder / tokenizer_files.FILES[0]).exists():
            tokenizer_files.save(tokenizer_files.train(self.whole.model.vocabulary_size, self.whole.seed), self.folder)
        self.ranks.wait()

    @property
    def checkpoint(self) -> Path:
        """The folder with the run's weights, as `twogear serve` takes it."""
        return self.folder / "checkpoint"

    @property
    def stage(self) -> Stage | None:
        """The stage that is under way; None where all are done."""
        stages = self.recipe.stages
        return stages[self.position.stage] if self.position.stage < len(stages) else None

    def step(self, parts: Mapping[str, Sequence[Batch]], rate: float) -> dict[str, float]:
        """A step of the optimizer on the sum of the parts' mean losses; each part's loss and share of right tokens.

        Raises FloatingPointError where a loss is no longer finite.
        """
        self.optimizer.set_rate(rate)
        found: dict[str, float] = {}
        for name, batches in parts.items():
            if batches:
                found[name], found[f"{name}_right"] = self.backward(batches)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimizer.step()
        self.position.step += 1
        self.position.stage_step += 1
        self._count_time()
        return found

    def _count_time(self) -> None:
        """Adds what has passed since it was last counted, drawing examples, checks and needle tests too."""
        now = time.monotonic()
        self.position.seconds += now - self._counted
        self._counted = now

    def backward(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Adds the gradient of the batches' mean loss; that, and the share of learnt tokens that were the likeliest."""
        total, right, learnt = 0.0, 0.0, 0
        for share in self.ranks.shares(batches):
            loss, correct = forward_loss(self.model, share.batch)
            loss = loss * share.weight / len(batches)
            loss.backward()
            total += loss.item() / self.ranks.size
            right += float(correct.sum())
            learnt += correct.numel()
        total, right, of = self.ranks.totals(total, right, learnt)
        tokens = sum(batch.ids.numel() for batch in batches)
        self.position.tokens += tokens
        self.position.stage_tokens += tokens
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is no longer finite at step {self.position.step}; lower learning_rate")
        return round(total, 5), round(right / of, 4)

    def is_stopping(self) -> bool:
        """Whether the run was asked to stop, in any of its processes."""
        return self.ranks.is_any(self.stop())

    def tell(self, text: str) -> None:
        """Prints a line, by the first process."""
        if self.ranks.is_first:
            print(text, flush=True)

    def after_step(self) -> None:
        """Saves where that is due. Raises StoppedError where the run was asked to stop."""
        if self.is_stopping():
            self.save()
            raise StoppedError
        if self.position.step % self.recipe.save_every == 0:
            self.save()

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds a record to the run's metrics."""
        at = self.position
        stage = self.recipe.stages[at.stage].name
        where = {"stage": stage, "step": at.step, "tokens": at.tokens, "stage_tokens": at.stage_tokens}
        self.files.log(where | {"seconds": round(at.seconds, 1)} | dict(record))

    def save(self) -> None:
        """Writes what a later start resumes from, here or on another machine."""
        self._count_time()
        kept = {
            "digest": self.whole.digest,
            "recipe": msgspec.json.encode(self.whole).decode(),
            "at": asdict(self.position),
            "ends": self.ends,
            "finished": [asdict(one) for one in self.finished],
            "tokenizer": {name: (self.folder / name).read_text() for name in tokenizer_files.FILES},
        }
        self.files.save(self.model, self.optimizer, kept)

    def take_mean(self, stage: MeanStage) -> None:
        """The mean of the stages' last weights in place of the model's."""
        processes.load(self.model, mean([self.ends[name] for name in stage.of]) if self.ranks.is_first else {})
        self.optimizer = Optimizer(self.model, weight_decay=self.recipe.weight_decay)

    def end_stage(self) -> None:
        """To the next stage: keeps the weights that a later mean is of, and writes state and checkpoint."""
        self._count_time()
        stage = self.recipe.stages[self.position.stage]
        before = [(one.tokens, one.seconds) for one in self.finished]
        tokens, seconds = (sum(column) for column in zip(*before, strict=True)) if before else (0, 0.0)
        self.finished.append(
            Finished(
                stage.name,
                self.position.tokens - int(tokens),
                round(self.position.seconds - seconds, 1),
                self.scale,
                made_by(self.model.device, self.ranks.size),
            )
        )
        self.position = self.position.next_stage()
        weights = self.ranks.gathered(self.model.state_dict())
        if self.ranks.is_first:
            self.ends[stage.name] = {name: one.detach().cpu().clone() for name, one in weights.items()}
        means = [one for one in self.recipe.stages[self.position.stage :] if isinstance(one, MeanStage)]
        needed = {name for one in means for name in one.of}
        self.ends = {name: weights for name, weights in self.ends.items() if name in needed}
        self.save()
        self.export()
        if isinstance(stage, SftStage) and self.ranks.is_first:
            draw_curve(self.files.metrics, self.folder / "curve.svg")

    def export(self) -> None:
        """Writes the checkpoint folder, and the run's record beside it."""
        weights = self.ranks.gathered(self.model.state_dict())
        if not self.ranks.is_first:
            return
        self.checkpoint.mkdir(exist_ok=True)
        model_files.save(self.model.config, weights, self.checkpoint)
        for name in tokenizer_files.FILES:
            (self.checkpoint / name).write_text((self.folder / name).read_text())
        record = {
            "digest": self.whole.digest,
            "seed": self.whole.seed,
            "tokens": self.position.tokens,
            "hours": round(self.position.seconds / 3600, 3),
            "finished": [asdict(one) for one in self.finished],
            "recipe": msgspec.to_builtins(self.whole),
        }
        (self.folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")


def forward_loss(model: Exaone4ForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the learnt tokens, 0 where there are none; the (learnt,) predictions' correctness."""
    ids, labels = batch.ids.to(model.device), batch.labels.to(model.device)
    counts = None if batch.counts is None else batch.counts.to(model.device)
    learnt = labels != IGNORED
    with torch.autocast(model.device.type, torch.bfloat16):
        compute = model.learnt_logits if isinstance(model, FSDPModule) else partial(learnt_logits, model)
        logits = compute(ids, learnt, counts)  # type: ignore[operator]  # (learnt, V); ranks.py gave it the method
    targets = labels[learnt]
    loss = torch.nn.functional.cross_entropy(logits, targets) if len(targets) else logits.sum()
    return loss, logits.argmax(-1) == targets


def made_by(device: torch.device, processes: int) -> dict[str, Any]:
    """What a stage was trained by: commit, torch, device, threads of each process, processes."""
    return {
        "commit": _commit(),
        "torch": str(torch.__version__),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def _commit() -> str:
    """The repository's, with a mark where files differ from it; `unknown` outside one."""
    here = Path(__file__).parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"],  # noqa: S607  (whatever git is there)
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"
