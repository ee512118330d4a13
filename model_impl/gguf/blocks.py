"""GGUF's blocks as our kernels take weights: integers, and for each 32 a scale and a smallest value. numpy alone.

Q8_0, Q5_0, Q4_0, Q4_1 and Q4_K mean `scale * q + least` for groups of 32 and fit our formats, so they are rearranged
and mean what they meant. Other kinds, with 5 or 6 bits or no integers at all, are rounded to 8 bits.
"""

from typing import Any, NamedTuple

import numpy as np

from model_impl.gguf import GgufError
from model_impl.weights import SHARED

Array = np.ndarray[Any, Any]

FLOATS = ("F32", "F16", "BF16")
FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K")
KEPT = ("Q8_0", "Q5_0", *FOUR_BITS)
"""Kinds that mean the same in our formats: in 8 bits, or those of 4 in 4."""
ROUNDED = ("Q5_1", "Q5_K", "Q6_K")
"""Kinds that are rounded to 8 bits."""
KINDS = (*FLOATS, *KEPT, *ROUNDED)
_ROWS = 2048
"""That are rearranged at once, so that an embedding is never there in float32."""


class Packable(NamedTuple):
    """A matrix (outputs, inputs): `values` in int8; `steps` and `least`, (outputs, inputs / 32), in float32.

    Where any of `least` is not 0, values are from 0 to 15; else from -127 to 127.
    """

    values: Array
    steps: Array
    least: Array


def check(name: str, kind: str) -> None:
    """Raises GgufError for a kind that is not read."""
    if kind not in KINDS:
        raise GgufError(
            f"{name} is of type {kind}, which is not read; files as Q8_0, Q4_0, Q4_K_M, Q5_K_M, Q6_K, F16 and BF16 "
            f"are (tensors of {', '.join(KINDS)})"
        )


def packable(kind: str, data: Array, outputs: int, inputs: int) -> Packable:
    """Of a matrix's bytes. Raises ValueError where groups of 32 do not divide its rows, or a weight is no number."""
    if inputs % SHARED:
        raise ValueError(f"rows of {inputs} weights cannot be divided into groups of {SHARED}")
    rows = data.reshape(outputs, -1)
    found = Packable(
        np.empty((outputs, inputs), np.int8),
        np.empty((outputs, inputs // SHARED), np.float32),
        np.empty((outputs, inputs // SHARED), np.float32),
    )
    take = _TAKE.get(kind)
    for first in range(0, outputs, _ROWS):
        some = slice(first, min(first + _ROWS, outputs))
        with np.errstate(all="ignore"):  # what is no number is seen below
            values, steps, least = _rounded(dense(kind, rows[some])) if take is None else take(rows[some])
        found.values[some] = values.reshape(-1, inputs)
        found.steps[some] = steps.reshape(-1, inputs // SHARED)
        found.least[some] = least.reshape(-1, inputs // SHARED)
    if not (np.isfinite(found.steps).all() and np.isfinite(found.least).all()):
        raise ValueError("a weight is infinite or not a number")
    return found


def dense(kind: str, rows: Array) -> Array:
    """(outputs, bytes) to (outputs, inputs) in float32."""
    if kind == "F16":
        widened: Array = rows.view(np.float16).astype(np.float32)
        return widened
    if kind == "F32":
        plain: Array = rows.view(np.float32)
        return plain
    from gguf import GGMLQuantizationType  # noqa: PLC0415 - brings much along; most kinds do without it
    from gguf.quants import dequantize  # noqa: PLC0415

    values: Array = dequantize(rows, GGMLQuantizationType[kind])
    return values


def _rounded(weights: Array) -> tuple[Array, Array, Array]:
    groups = weights.reshape(-1, SHARED)
    steps = np.abs(groups).max(axis=1) / np.float32(127)
    values = np.where(steps[:, None] > 0, groups / steps[:, None], 0)
    return np.rint(values).astype(np.int8), steps, np.zeros_like(steps)


def _halves(blocks: Array, at: int) -> Array:
    """(blocks,): the float16 at that byte."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)[:, 0]


def _nibbles(bytes_: Array) -> Array:
    """(..., n) to (..., 2 n): all low halves, then all high ones."""
    halves: Array = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=-1).astype(np.int8)
    return halves


def _q8_0(rows: Array) -> tuple[Array, Array, Array]:
    blocks = rows.reshape(-1, 34)
    steps = _halves(blocks, 0)
    values = np.maximum(blocks[:, 2:].view(np.int8), -127)  # no quantizer writes -128
    return values, steps, np.zeros_like(steps)


def _q5_0(rows: Array) -> tuple[Array, Array, Array]:
    blocks = rows.reshape(-1, 22)
    steps = _halves(blocks, 0)
    fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little").astype(np.int8)
    return _nibbles(blocks[:, 6:]) + 16 * fifth - 16, steps, np.zeros_like(steps)


def _q4_0(rows: Array) -> tuple[Array, Array, Array]:
    blocks = rows.reshape(-1, 18)
    steps = _halves(blocks, 0)
    return _nibbles(blocks[:, 2:]), steps, -8 * steps


def _q4_1(rows: Array) -> tuple[Array, Array, Array]:
    blocks = rows.reshape(-1, 20)
    return _nibbles(blocks[:, 4:]), _halves(blocks, 0), _halves(blocks, 2)


def _q4_k(rows: Array) -> tuple[Array, Array, Array]:
    """256 weights: two float16 that scale the scales and smallest values of 8 groups, which have 6 bits each."""
    blocks = rows.reshape(-1, 144)
    scales, lows, highs = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    steps = np.concatenate([scales & 63, (highs & 15) | ((scales >> 2) & 48)], axis=1).astype(np.float32)
    least = np.concatenate([lows & 63, (highs >> 4) | ((lows >> 2) & 48)], axis=1).astype(np.float32)
    values = _nibbles(blocks[:, 16:].reshape(-1, 4, SHARED))
    return values, steps * _halves(blocks, 0)[:, None], -least * _halves(blocks, 2)[:, None]


_TAKE = {"Q8_0": _q8_0, "Q5_0": _q5_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k}
