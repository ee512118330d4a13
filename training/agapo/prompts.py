"""What is asked: training items of the task families, the ones that the SFT model always solves left out.

A prompt is known by its number: number and seed of a recipe give the same item in every run and after every restart.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from chat_templates.format import ChatFormat
from server.cli_errors import UsageError
from tasks.families import Item, draw
from training.modes import STYLES, Mode
from training.recipe import AgapoRecipe


class Prompt(NamedTuple):
    """A question in a mode; `ids` is what the engine is given."""

    number: int
    item: Item
    ids: list[int]
    mode: Mode


def prompt_of(item: Item, number: int, fmt: ChatFormat, mode: Mode = "reasoning") -> Prompt:
    """The item as a user asks it."""
    return Prompt(number, item, fmt.render([{"role": "user", "content": item.question.strip()}], STYLES[mode]), mode)


def make_prompt(recipe: AgapoRecipe, seed: int, number: int, fmt: ChatFormat) -> Prompt:
    """Prompt `number` of a run; family and mode by the recipe's weights, as hard as it has it, never held out."""
    rng = random.Random(f"agapo/{seed}/{number}")
    family = rng.choices(tuple(recipe.families), tuple(recipe.families.values()))[0]
    item = draw(family, rng, level=recipe.hardest)
    return prompt_of(item, number, fmt, "standard" if rng.random() < recipe.standard_share else "reasoning")


def held_out_prompts(recipe: AgapoRecipe, seed: int, fmt: ChatFormat, mode: Mode) -> list[Prompt]:
    """The items that a run is checked with, the families in turn; the same in both modes."""
    names = tuple(recipe.families)
    rng = random.Random(f"agapo check/{seed}")
    items = (
        draw(names[index % len(names)], rng, level=recipe.hardest, held_out=True)
        for index in range(recipe.evaluation_items)
    )
    return [prompt_of(item, number, fmt, mode) for number, item in enumerate(items)]


def order(pool: Sequence[int], seed: int, start: int, count: int) -> Iterator[list[int]]:
    """`count` numbers from the pool for each step from `start` on: all of it in random order, then again in another."""

    def endless() -> Iterator[int]:
        epoch = 0
        while True:
            numbers = list(pool)
            random.Random(f"agapo order/{seed}/{epoch}").shuffle(numbers)
            yield from numbers
            epoch += 1

    numbers = endless()
    for _ in range(start * count):
        next(numbers)
    while True:
        yield [next(numbers) for _ in range(count)]


def write_pool(path: Path, solved: dict[int, int], group_size: int) -> list[int]:
    """Keeps how many answers to each prompt were right; the numbers of those that were not always."""
    path.write_text(json.dumps({"group_size": group_size, "solved": solved}) + "\n")
    return read_pool(path)


def read_pool(path: Path) -> list[int]:
    """The numbers of the prompts that were not always solved. Raises UsageError where there are none."""
    kept = json.loads(path.read_text())
    pool = [int(number) for number, right in kept["solved"].items() if right < kept["group_size"]]
    if not pool:
        raise UsageError("every prompt was solved by all answers: take more of them, or harder families")
    return pool
