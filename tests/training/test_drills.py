"""Drills are answered by what they ask for."""

import random

from training.drills import draw


def test_a_drill_repeats_or_spells_the_words_of_its_prompt() -> None:
    rng = random.Random(0)
    for _ in range(200):
        drill = draw(rng, ("sun", "window", "Rain"))
        if drill.thought.startswith("I repeat"):
            assert drill.answer in drill.prompt
            continue
        for part in drill.answer.split(","):
            word, *letters = part.split()
            assert word in drill.prompt
            assert "".join(letters) == word.lower()
