"""Draws a token per row of logits, exactly within temperature, min-p, top-k and top-p, without sorting the vocabulary.

One uniform number a row decides: the token is where the running sum of the kept tokens' probabilities, in the order of
their ids, passes that share of their sum. So a row draws the same token in any batch, and nearly equal logits draw
nearly always the same. Knows nothing of vLLM: generators, penalties and greedy rows are the caller's.

What is kept is what vLLM keeps (v1/sample/ops/topk_topp_sampler.py): min-p first, then top-k with all that tie with
the k-th, then, of the mass that these leave, tokens while the mass before them is below p. Of tokens that tie at the
last place of top-p, those with lower ids are kept; which ones vLLM keeps depends on its sort.

On CPUs that our kernels are written for, `kernels/sample.cpp` draws. Elsewhere numpy and torch do, and for rows without
a finite largest logit, as follows. Each row is cut into blocks. All that is above the 64th largest peak of a block is
in the other 63 blocks, so a small nucleus is found among few tokens. A row whose nucleus is larger has its values
sorted (without their ids, which takes a hundredth of the time of torch's sort with them); a row without limits needs
its blocks' sums alone.
"""

from ctypes import CDLL
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

BLOCK = 128
PEAKS = 64
SCRATCH = 1 << 22  # probabilities held at a time, a few rows of any vocabulary: 16 MB, twice

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]


class Limits(NamedTuple):
    """What narrows the draw, a value per row; None where no row asks for it.

    `top_k` is at least 1, the vocabulary's size or more meaning no limit; `top_p` is in (0, 1]; `min_p` in [0, 1].
    """

    top_k: Ints | None = None
    top_p: Floats | None = None
    min_p: Floats | None = None

    def rows(self, rows: slice | Ints) -> "Limits":
        """Those of some rows."""
        return Limits(
            None if self.top_k is None else self.top_k[rows],
            None if self.top_p is None else self.top_p[rows],
            None if self.min_p is None else self.min_p[rows],
        )

    def of(self, row: int) -> tuple[int | None, float, float]:
        """The three of one row."""
        return (
            None if self.top_k is None else int(self.top_k[row]),
            1.0 if self.top_p is None else float(self.top_p[row]),
            0.0 if self.min_p is None else float(self.min_p[row]),
        )


class Drawer:
    """Draws, in memory that it keeps: fresh pages for every step would take longer than what is computed in them.

    `library`: of our kernels, or None for what takes their place.
    """

    def __init__(self, library: CDLL | None = None) -> None:
        self._library = library
        self._scratch = torch.empty(0)

    def draw(
        self, logits: torch.Tensor, rows: Ints, temperature: torch.Tensor, uniforms: Floats, limits: Limits
    ) -> Ints:
        """One token id for each of `rows` of `logits` (any, vocabulary), float32, which stay as they are.

        Of these rows, (rows,) each: `temperature` is above zero; `uniforms` are in [0, 1), in float64. A row in which
        nothing is finite draws what argmax gives.
        """
        if self._library is None:
            return self._draw_in_parts(logits[rows], temperature, uniforms, limits)
        tokens = self._draw_natively(logits, rows, temperature, uniforms, limits)
        rest = np.flatnonzero(tokens < 0)
        if rest.size:
            tokens[rest] = self._draw_in_parts(logits[rows[rest]], temperature[rest], uniforms[rest], limits.rows(rest))
        return tokens

    def _draw_natively(
        self, logits: torch.Tensor, rows: Ints, temperature: torch.Tensor, uniforms: Floats, limits: Limits
    ) -> Ints:
        """The tokens, -1 for rows that hold a nan or no finite largest logit."""
        logits, temperature = logits.contiguous(), temperature.contiguous()
        given = (
            np.ascontiguousarray(rows, np.int64),
            np.ascontiguousarray(uniforms, np.float64),
            None if limits.top_k is None else np.ascontiguousarray(limits.top_k, np.int64),
            *(
                None if part is None else np.ascontiguousarray(part, np.float64)
                for part in (limits.top_p, limits.min_p)
            ),
        )
        chosen, shares, *narrowing = (None if values is None else values.ctypes.data for values in given)
        tokens = np.empty(len(rows), np.int64)
        assert self._library is not None
        self._library.draw(
            *(logits.data_ptr(), chosen, len(rows), logits.shape[1], temperature.data_ptr(), shares),
            *narrowing,
            tokens.ctypes.data,
        )
        return tokens

    def _draw_in_parts(self, logits: torch.Tensor, temperature: torch.Tensor, uniforms: Floats, limits: Limits) -> Ints:
        rows, vocabulary = logits.shape
        at_once = max(SCRATCH // vocabulary, 1)
        tokens = np.empty(rows, np.int64)
        for start in range(0, rows, at_once):
            part = slice(start, start + at_once)
            masses = self._probabilities(logits[part], temperature[part])
            tokens[part] = _draw(masses, vocabulary, uniforms[part], limits.rows(part))
        return tokens

    def _probabilities(self, logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        """(rows, blocks, BLOCK) float32; what fills the last block up has probability 0."""
        rows, vocabulary = logits.shape
        blocks = -(-vocabulary // BLOCK)
        count = rows * blocks * BLOCK
        if self._scratch.numel() < 2 * count:
            self._scratch = torch.empty(2 * count)
        scaled, masses = self._scratch[: 2 * count].view(2, rows, blocks * BLOCK)
        torch.div(logits, temperature[:, None], out=scaled[:, :vocabulary])
        scaled[:, vocabulary:] = -torch.inf
        torch.softmax(scaled, -1, out=masses)
        broken = masses[:, 0].isnan()  # a nan or inf in a row, or nothing above -inf, makes all of the row nan
        if broken.any():
            masses[broken] = torch.nn.functional.one_hot(scaled[broken].argmax(-1), blocks * BLOCK).float()
        shaped: torch.Tensor = masses.view(rows, blocks, BLOCK)
        return shaped


def _draw(masses: torch.Tensor, vocabulary: int, uniforms: Floats, limits: Limits) -> Ints:
    """A token per row of (rows, blocks, BLOCK); overwrites the masses."""
    rows = np.arange(len(masses))
    sums = masses.sum(-1)
    if all(values is None for values in limits):
        return _draw_among_all(masses.numpy(), sums.numpy(), rows, uniforms)
    total = sums.sum(-1, dtype=torch.float64).numpy()
    tokens, found = _draw_among_largest(masses, total, vocabulary, uniforms, limits)
    rest = rows[~found]
    if rest.size:
        for row in rest:
            if _drop(masses[row].view(-1)[:vocabulary].numpy(), *limits.of(row)):
                sums[row] = masses[row].sum(-1)
        tokens[rest] = _draw_among_all(masses.numpy(), sums.numpy(), rest, uniforms[rest])
    return tokens


def _draw_among_largest(
    masses: torch.Tensor, total: Floats, vocabulary: int, uniforms: Floats, limits: Limits
) -> tuple[Ints, Mask]:
    """A token per row, and the rows for which it counts: those that keep only what is above the row's bound."""
    grid, ids, bound = _largest(masses)  # in the order of the ids
    rows = np.arange(len(grid))
    mass = -np.sort(-grid, axis=1)  # descending

    floor = np.zeros(len(grid)) if limits.min_p is None else limits.min_p * mass[:, 0]
    narrowed = floor > 0
    if limits.top_k is not None:
        ranked = limits.top_k < vocabulary
        kth = np.where(limits.top_k <= mass.shape[1], mass[rows, np.minimum(limits.top_k, mass.shape[1]) - 1], 0)
        floor = np.where(ranked, np.maximum(floor, kth), floor)
        narrowed |= ranked
    allowed = np.where(mass >= floor[:, None], mass, 0)
    running = allowed.cumsum(1)
    goal = np.where(narrowed, running[:, -1], total)
    if limits.top_p is not None:
        goal *= limits.top_p
    size = ((running - allowed < goal[:, None]) & (allowed > 0)).sum(1)
    smallest = mass[rows, size - 1][:, None]
    found = (bound == 0) | np.where(narrowed, floor > bound, running[:, -1] >= goal)

    ties = grid == smallest
    room = size[:, None] - (grid > smallest).sum(1, keepdims=True)
    kept = (grid > smallest) | (ties & (ties.cumsum(1) <= room))
    places = _pass(np.where(kept, grid, 0).cumsum(1), uniforms).clip(max=grid.shape[1] - 1)  # a row may have none here
    return ids[rows, places], found


def _largest(masses: torch.Tensor) -> tuple[Floats, Ints, Floats]:
    """What is above a bound in each row of (rows, blocks, BLOCK): masses and ids (rows, most), and the bounds (rows,).

    In the order of the ids; rows with less than the most are filled up with mass 0. A bound of 0 leaves nothing out.
    """
    rows, blocks, size = masses.shape
    values = masses.numpy()
    if blocks > PEAKS:
        peaks = masses.amax(-1).numpy()
        bound = np.partition(peaks, blocks - PEAKS, axis=1)[:, blocks - PEAKS]
        high = np.flatnonzero(peaks > bound[:, None])
        pool = values.reshape(-1, size)[high]
        inside = np.flatnonzero(pool > bound[high // blocks][:, None])
        places = high[inside // size] * size + inside % size
    else:
        flat = values.reshape(rows, -1)
        bound = np.partition(flat, -PEAKS, axis=1)[:, -PEAKS]
        places = np.flatnonzero(flat > bound[:, None])
    row, token = np.divmod(places, blocks * size)
    counts = np.bincount(row, minlength=rows)
    column = np.arange(len(places)) - (counts.cumsum() - counts)[row]
    grid = np.zeros((rows, max(counts.max(), 1)))
    ids = np.zeros(grid.shape, np.int64)
    grid[row, column] = values.reshape(-1)[places]
    ids[row, column] = token
    return grid, ids, bound


def _drop(mass: Floats, top_k: int | None, top_p: float, min_p: float) -> bool:
    """Sets what is not kept of one row (vocabulary,) to zero; whether there was a limit."""
    top_k = len(mass) if top_k is None else min(top_k, len(mass))
    if top_k == len(mass) and top_p >= 1 and min_p == 0:
        return False
    ascending = np.sort(mass)
    floor = max(min_p * ascending[-1], ascending[-top_k] if top_k < len(mass) else 0)
    size = len(mass) - int(ascending.searchsorted(floor))
    if top_p < 1:
        size = _nucleus(ascending[-size:][::-1], top_p)
    smallest = ascending[-size]
    mass *= mass >= smallest  # several times faster than to assign where it is not
    surplus = len(mass) - int(ascending.searchsorted(smallest)) - size
    if surplus:
        mass[np.flatnonzero(mass == smallest)[-surplus:]] = 0
    return True


def _nucleus(descending: Floats, top_p: float) -> int:
    """How many of the values have less than `top_p` of their sum before them."""
    starts = np.arange(0, len(descending), BLOCK)
    running = np.add.reduceat(descending, starts).cumsum(dtype=np.float64)
    goal = top_p * running[-1]
    block = int(running.searchsorted(goal))
    before = running[block - 1] if block else 0.0
    inside = before + descending[block * BLOCK : (block + 1) * BLOCK].cumsum(dtype=np.float64)
    return int(min(block * BLOCK + inside.searchsorted(goal) + 1, len(descending)))


def _draw_among_all(masses: Floats, sums: Floats, rows: Ints, uniforms: Floats) -> Ints:
    """A token for each of some rows of (rows, blocks, BLOCK): its block by the blocks' sums, then its place there."""
    running = sums[rows].cumsum(1, dtype=np.float64)
    block = _pass(running, uniforms)
    size = sums[rows, block]
    before = running[np.arange(len(rows)), block] - size
    share = (uniforms * running[:, -1] - before) / size
    inside = masses[rows, block].cumsum(1, dtype=np.float64)
    tokens: Ints = block * BLOCK + _pass(inside, share.clip(0, 1))
    return tokens


def _pass(running: Floats, shares: Floats) -> Ints:
    """The first place in each row of running sums (rows, n) that is above the row's share of its last sum."""
    whole = running[:, -1]
    goal = np.minimum(shares * whole, np.nextafter(whole, 0))  # rounding must not carry a share to the whole
    places: Ints = (running <= goal[:, None]).sum(1)
    return places
