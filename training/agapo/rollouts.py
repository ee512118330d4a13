"""Answers drawn by our own engine: one process, started once, that takes the policy's weights before it is asked.

The engine is the server's (`engine/`); what is asked comes in token ids, with the answers' rewards by the
families' own scoring.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from chat_templates.format import ChatFormat
from engine.messages import Delta, Generate, Sampling
from tasks.families import score
from training.agapo.prompts import Prompt


class Engine(Protocol):
    """What is needed of an engine client."""

    def generate(self, request: Generate) -> AsyncIterator[Delta]:
        """Deltas of one request, the last with `finish`."""

    async def reload(self, folder: Path) -> None:
        """Has the engine take the weights of another checkpoint."""


class Answer(NamedTuple):
    """A drawn sequence, thinking and end of turn included, and what it is worth: 1 for a right answer, else 0."""

    ids: list[int]
    reward: float


async def draw_answers(
    engine: Engine, fmt: ChatFormat, prompts: Sequence[Prompt], count: int, sampling: Sampling, *, seed: int
) -> list[list[Answer]]:
    """`count` answers to each prompt, all at once; the same seed draws the same."""

    async def one(prompt: Prompt, which: int) -> Answer:
        own_seed = (seed * 1_000_003 + which) & 0x7FFF_FFFF
        request = Generate(f"{seed}-{which}", prompt.ids, _with_seed(sampling, own_seed))
        ids: list[int] = []
        async for delta in engine.generate(request):
            ids += delta.token_ids
        return Answer(ids, reward(fmt, prompt, ids))

    answers = await asyncio.gather(
        *(one(prompt, index * count + which) for index, prompt in enumerate(prompts) for which in range(count))
    )
    return [list(answers[start : start + count]) for start in range(0, len(answers), count)]


def reward(fmt: ChatFormat, prompt: Prompt, ids: Sequence[int]) -> float:
    """1 where the text after the thinking is the right answer and the turn was ended, else 0.

    A prompt that does not open the thinking, as in standard mode, is answered with the text as a whole.
    """
    if not ids or ids[-1] != fmt.end_of_turn_id:
        return 0.0
    if fmt.is_thinking_open(prompt.ids):
        if fmt.think_end_id not in ids:
            return 0.0
        ids = ids[len(ids) - list(reversed(ids)).index(fmt.think_end_id) :]
    return float(score(prompt.item, fmt.decode(ids)) >= 1.0)


def _with_seed(sampling: Sampling, seed: int) -> Sampling:
    return sampling if sampling.temperature == 0.0 else replace(sampling, seed=seed)
