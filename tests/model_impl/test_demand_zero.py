"""Zeros that are not filled in are zeros all the same, and only those of the KV cache are."""

from pathlib import Path

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


def test_everything_else_is_made_by_torch() -> None:
    with DemandZero():
        small = torch.zeros(8, dtype=torch.int8, device="cpu")
        numbers = torch.zeros(SMALLEST, dtype=torch.float32, device="cpu")
        shaped = torch.zeros((SMALLEST, 2), dtype=torch.int8, device="cpu")
        ones = torch.ones(SMALLEST, dtype=torch.int8)
    assert small.shape == (8,)
    assert numbers.dtype == torch.float32
    assert shaped.shape == (SMALLEST, 2)
    assert bool(ones.all())
