"""Repetition, frequency and presence penalties on the tokens that were seen, rather than on rows of the vocabulary.

vLLM counts every token of the vocabulary for every row and step (model_executor/layers/utils.py); a request has seen a
few thousand of them. The results are equal. Knows nothing of vLLM.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.integer[Any]]


def apply_penalties(
    logits: Floats,
    prompts: Ints,
    outputs: Sequence[Sequence[int]],
    *,
    repetition: Floats,
    frequency: Floats,
    presence: Floats,
) -> None:
    """Changes logits (rows, vocabulary) in place; a penalty per row.

    `prompts` (rows, longest) and `outputs`, one sequence per row, are token ids; those outside of the vocabulary are
    padding. Repetition counts both, divides positive logits and multiplies negative ones; then, as OpenAI defines
    them, frequency is subtracted for each time that a token was put out, presence once.
    """
    for row in np.flatnonzero((repetition != 1) | (frequency != 0) | (presence != 0)):
        values = logits[row]
        put_out, counts = np.unique(_inside(np.array(outputs[row], np.int64), len(values)), return_counts=True)
        if repetition[row] != 1:
            seen = np.concatenate((_inside(prompts[row], len(values)), put_out))
            before = values[seen]  # what is seen twice is read twice, and written twice with one value
            values[seen] = np.where(before > 0, before / repetition[row], before * repetition[row])
        values[put_out] -= frequency[row] * counts.astype(np.float32)
        values[put_out] -= presence[row]


def _inside(ids: Ints, vocabulary: int) -> Ints:
    return ids[(ids >= 0) & (ids < vocabulary)]
