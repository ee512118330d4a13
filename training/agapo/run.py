"""The stage as a whole: prompts are sifted, answers drawn, learnt from and checked, step by step; resumes and exports.

The engine runs beside the training in a process of its own and takes the policy's weights before every step.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import Exaone4ForCausalLM
from transformers.utils.logging import disable_progress_bar

from chat_templates.format import ChatFormat
from engine.messages import Sampling
from training import attention
from training import model as model_files
from training.agapo import prompts as prompt_files
from training.agapo.plot import draw_runs
from training.agapo.prompts import Prompt
from training.agapo.rollouts import Answer, Engine, draw_answers
from training.agapo.update import Learner, Sequenced
from training.engine import running_engine
from training.modes import STYLES, Mode
from training.recipe import AgapoRecipe
from training.run_folder import RunFolder
from training.tokenizer import FILES

_CHECKS: tuple[tuple[Mode, float, float], ...] = (("standard", 0.0, 1.0), ("reasoning", 0.6, 0.95))
"""Temperature and top_p with which each mode is checked: as the makers of EXAONE 4.0 recommend."""


class AgapoRun:
    """One run in a folder: the sifted prompts, state, metrics, and the finished checkpoint."""

    def __init__(self, recipe: AgapoRecipe, seed: int, folder: Path, device: torch.device) -> None:
        self.recipe = recipe
        self.seed = seed
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.fmt = ChatFormat.from_folder(Path(recipe.start))
        policy, reference = (_load(Path(recipe.start), device) for _ in range(2))
        self.learner = Learner(policy, reference, recipe)
        self._kept = RunFolder(folder)
        position = self._kept.resume(self.learner.policy, self.learner.optimizer)
        self.step: int = position.get("step", 0)
        self.seconds: float = position.get("seconds", 0.0)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.recipe.steps

    def run(self) -> None:
        """Trains for the recipe's steps and exports the checkpoint."""
        if not self.is_finished:
            asyncio.run(self._run_with_engine())
        self.export(Path(self.recipe.output))

    async def _run_with_engine(self) -> None:
        async with running_engine(self.recipe.start) as engine:
            await self.train(engine)

    async def train(self, engine: Engine) -> None:
        """The remaining steps, with an engine that has the start's weights."""
        disable_progress_bar()  # transformers': one for every refresh of the engine's weights
        if not (self.folder / "pool.json").exists():
            await self._sift(engine)
        pool = prompt_files.read_pool(self.folder / "pool.json")
        if self.step == 0:
            self._kept.log({"step": 0, "prompts": len(pool), "pass_rate": await self._check(engine)})
        numbers = prompt_files.order(pool, self.seed, self.step, self.recipe.prompts_per_step)
        columns = (TextColumn(self.recipe.method), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            bar = progress.add_task(self.recipe.method, total=self.recipe.steps, completed=self.step)
            while not self.is_finished:
                await self._train_step(engine, next(numbers))
                progress.update(bar, completed=self.step)

    async def _train_step(self, engine: Engine, numbers: Sequence[int]) -> None:
        started = time.monotonic()
        prompts = [prompt_files.make_prompt(self.recipe, self.seed, number, self.fmt) for number in numbers]
        record: dict[str, Any] = {}
        if self.recipe.method == "sft":
            report = self.learner.learn(self._traces(prompts), torch.zeros(len(prompts), 1))
        else:
            await self._refresh(engine)
            answers = await self._draw(engine, prompts, self.recipe.group_size, self.step + 1)
            sequences, rewards = in_sequence(prompts, answers)
            record = {
                "reward": float(rewards.mean()),
                "all_wrong": float((rewards == 0).all(1).float().mean()),
                "all_right": float((rewards == 1).all(1).float().mean()),
                "answer_tokens": sum(sum(one.learnt) for one in sequences) / len(sequences),
            }
            report = self.learner.learn(sequences, rewards)
        self.step += 1
        self.seconds += time.monotonic() - started
        record |= {"loss": report.loss, "divergence": report.divergence, "gradient": report.gradient}
        if self.step % self.recipe.evaluate_every == 0 or self.is_finished:
            await self._refresh(engine)
            record["pass_rate"] = await self._check(engine)
        self._kept.log({"step": self.step, "seconds": round(self.seconds, 1)} | _rounded(record))
        if self.step % self.recipe.save_every == 0 or self.is_finished:
            self._save_state()

    def _traces(self, prompts: Sequence[Prompt]) -> list[Sequenced]:
        """The prompts' own traces and answers, as supervised fine-tuning has them."""
        sequences = []
        for index, prompt in enumerate(prompts):
            thought = {"reasoning_content": prompt.item.trace} if prompt.mode == "reasoning" else {}
            answer = {"role": "assistant", "content": prompt.item.answer, **thought}
            question = {"role": "user", "content": prompt.item.question.strip()}
            ids, learnt = self.fmt.render_conversation([question, answer], STYLES[prompt.mode])
            sequences.append(Sequenced(ids, learnt, index))
        return sequences

    async def _sift(self, engine: Engine) -> None:
        """Asks all prompts and keeps how often each was solved."""
        numbers = range(self.recipe.prompts)
        prompts = [prompt_files.make_prompt(self.recipe, self.seed, number, self.fmt) for number in numbers]
        answers = await self._draw(engine, prompts, self.recipe.group_size, 0)
        solved = {number: sum(int(one.reward) for one in group) for number, group in zip(numbers, answers, strict=True)}
        prompt_files.write_pool(self.folder / "pool.json", solved, self.recipe.group_size)

    async def _draw(self, engine: Engine, prompts: Sequence[Prompt], count: int, draw: int) -> list[list[Answer]]:
        sampling = Sampling(max_tokens=self.recipe.max_tokens, temperature=self.recipe.temperature)
        return await draw_answers(engine, self.fmt, prompts, count, sampling, seed=self.seed * 1_000_003 + draw)

    async def _check(self, engine: Engine) -> dict[str, float]:
        """The share of held-out items answered right, per `family/mode`."""
        shares: dict[str, list[float]] = {}
        for mode, temperature, top_p in _CHECKS:
            prompts = prompt_files.held_out_prompts(self.recipe, self.seed, self.fmt, mode)
            sampling = Sampling(max_tokens=self.recipe.max_tokens, temperature=temperature, top_p=top_p)
            answers = await draw_answers(engine, self.fmt, prompts, 1, sampling, seed=self.seed)
            for prompt, (answer,) in zip(prompts, answers, strict=True):
                shares.setdefault(f"{prompt.item.family}/{mode}", []).append(answer.reward)
        return {key: round(sum(rewards) / len(rewards), 4) for key, rewards in shares.items()}

    async def _refresh(self, engine: Engine) -> None:
        """Gives the engine the policy's weights."""
        policy = self.learner.policy
        model_files.save(policy.config, policy.state_dict(), self.folder / "policy")
        await engine.reload(self.folder / "policy")

    def _save_state(self) -> None:
        """Writes what a later start resumes from."""
        position = {"step": self.step, "seconds": self.seconds}
        self._kept.save(self.learner.policy, self.learner.optimizer, position)

    def export(self, output: Path) -> None:
        """Writes the checkpoint folder, the run's metrics and curve in it under `training/`."""
        record = output / "training"
        record.mkdir(parents=True, exist_ok=True)
        (record / f"{self.recipe.method}.jsonl").write_bytes(self._kept.metrics.read_bytes())
        draw_runs({self.recipe.method: [self._kept.metrics]}, record / f"{self.recipe.method}.svg")
        for name in FILES:
            (output / name).write_bytes((Path(self.recipe.start) / name).read_bytes())
        model_files.save(self.learner.policy.config, self.learner.policy.state_dict(), output)


def in_sequence(prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> tuple[list[Sequenced], torch.Tensor]:
    """Prompts with their answers, the groups one after the other, and the rewards (G, N)."""
    sequences = [
        Sequenced(prompt.ids + answer.ids, [False] * len(prompt.ids) + [True] * len(answer.ids), index)
        for index, (prompt, answer) in enumerate(
            (prompt, answer) for prompt, group in zip(prompts, answers, strict=True) for answer in group
        )
    ]
    return sequences, torch.tensor([[answer.reward for answer in group] for group in answers])


def _load(folder: Path, device: torch.device) -> Exaone4ForCausalLM:
    model: Exaone4ForCausalLM = Exaone4ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention.NAME
    )
    model_files.move(model, device)
    return model


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in record.items()}
