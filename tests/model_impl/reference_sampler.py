"""The reference for the fast sampler: every row sorted, in double precision."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]


class Row(NamedTuple):
    """A row's probabilities (vocabulary,), 0 where a token is not kept, unnormalised, and how sure the edge is.

    `margin`: the smallest share of the mass by which top-p would have to change for another token to be kept; what is
    computed in float32 may differ where it is of that precision's size.
    """

    mass: Floats
    margin: float

    def draw(self, uniform: float) -> int:
        """The first token, by id, at which the running sum is above the share."""
        running = self.mass.cumsum()
        return int(np.searchsorted(running, uniform * running[-1], side="right"))

    def distance(self, token: int, uniform: float) -> float:
        """How far the share is from those that draw the token: 0 where it draws it."""
        running = self.mass.cumsum() / self.mass.sum()
        start = running[token - 1] if token else 0.0
        return float(max(start - uniform, uniform - running[token], 0.0))


def keep(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Row:
    """Min-p, top-k with ties, top-p of what they leave, lower ids first among ties."""
    scaled = (logits / torch.tensor(temperature)).double().numpy()  # the division is in float32, as in vLLM
    with np.errstate(over="ignore"):
        mass = np.exp(scaled - scaled.max())
    mass[mass < min_p * mass.max()] = 0
    order = np.argsort(-scaled, kind="stable")
    if top_k < len(mass):
        mass[scaled < scaled[order[top_k - 1]]] = 0
    mass /= mass.sum()
    descending = mass[order]
    before = descending.cumsum() - descending
    mass[order[(before >= top_p) & (np.arange(len(order)) > 0)]] = 0
    return Row(mass, float(np.abs(before[1:] - top_p).min(initial=1.0)) if top_p < 1 else 1.0)
