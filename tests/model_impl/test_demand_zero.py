"""Zeros that are not filled in are zeros all the same, and only large ones on the CPU are."""

from pathlib import Path

import pytest
import torch

from model_impl.cpu.demand_zero import SMALLEST, DemandZero

SIZE = 64 * SMALLEST


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_large_buffers_are_zeros_and_take_memory_only_where_they_are_written() -> None:
    before = resident()
    with DemandZero():
        buffer = torch.zeros(SIZE, dtype=torch.int8, device=torch.device("cpu"))
    assert resident() - before < SIZE // 8
    assert buffer.shape == (SIZE,)
    assert buffer.data_ptr() % 4096 == 0
    tail = buffer[-4096:]
    tail += 1
    assert resident() - before < SIZE // 8
    assert int(tail.sum()) == 4096
    assert not buffer[:4096].any()


def test_views_of_another_type_write_into_it() -> None:
    with DemandZero():
        buffer = torch.zeros(SIZE, dtype=torch.int8, device="cpu")
    buffer.view(torch.bfloat16)[3] = 1.0
    assert buffer[:8].any()
    assert not buffer[8:64].any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, bool], ids=str)
def test_of_any_shape_and_type(dtype: torch.dtype) -> None:
    before = resident()
    with DemandZero() as zeros:
        tokens = torch.zeros((128, SIZE // 128), dtype=dtype, device="cpu", pin_memory=False)
    assert resident() - before < SIZE // 8
    assert zeros.size == 0
    ordinary = torch.zeros((128, 1), dtype=dtype)
    assert (tokens.shape, tokens.dtype) == ((128, SIZE // 128), ordinary.dtype)
    tokens.numpy()[3, 5] = 1
    assert int(tokens[3].sum()) == 1
    assert not tokens[2].any()


def test_everything_else_is_made_by_torch() -> None:
    with DemandZero() as zeros:
        small = torch.zeros(8, dtype=torch.int8, device="cpu")
        elsewhere = torch.zeros(SMALLEST, dtype=torch.int8, device="meta")
        ones = torch.ones(SMALLEST, dtype=torch.int8)
    assert zeros.size == 0
    assert small.shape == (8,)
    assert elsewhere.is_meta
    assert bool(ones.all())
