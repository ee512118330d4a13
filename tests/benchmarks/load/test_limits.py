"""Limits worked out by hand for small numbers, and a shape that agrees with a real checkpoint's weights."""

import json
import struct

import pytest

from benchmarks.load.limits import Shape, prefill_seconds, step_seconds, tokens_per_second
from benchmarks.load.machine import Machine, read_bandwidth_apart
from benchmarks.load.workload import Load
from server.settings import EMBEDDED_MODEL

SHAPE = Shape(
    weights=1000, output_weights=100, attention_width=8, kv_numbers=4, sliding_layers=3, global_layers=1, window=10
)
SLOW_MEMORY = Machine("", 1, 1, "", read_bandwidth=1000.0, bf16_matmul=1e12)
SLOW_PRODUCTS = Machine("", 1, 1, "", read_bandwidth=1e12, bf16_matmul=1000.0)


def test_the_weights_of_the_embedded_checkpoint() -> None:
    with (EMBEDDED_MODEL / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    counts = {
        name: tensor["shape"][0] * tensor["shape"][1]
        for name, tensor in header.items()
        if len(tensor.get("shape", ())) == 2
    }
    shape = Shape.of(EMBEDDED_MODEL)
    embedding = counts.pop("model.embed_tokens.weight")
    head = counts.pop("lm_head.weight", embedding)  # without one of its own, the embedding is the head too
    assert shape.weights == sum(counts.values()) + head
    assert shape.output_weights == head


def test_a_step_reads_all_weights_and_what_its_requests_see() -> None:
    # Of 50 tokens, sliding layers see 10 and global ones all: 3 * 10 + 50 = 80 positions of 4 numbers of 2 bytes.
    assert SHAPE.seen(50) == 80
    assert step_seconds(SHAPE, SLOW_MEMORY, 3, 50) == pytest.approx((2000 + 3 * 80 * 8) / 1000)
    assert step_seconds(SHAPE, SLOW_PRODUCTS, 3, 50) == pytest.approx(3 * (2000 + 4 * 8 * 80) / 1000)


def test_a_prefill() -> None:
    # Position by position: sliding layers see at most 10, global ones all before it.
    seen = sum(3 * min(at, 10) + at for at in range(1, 51))
    operations = 50 * 2 * 900 + 2 * 100 + 4 * 8 * seen
    assert prefill_seconds(SHAPE, SLOW_PRODUCTS, 50) == pytest.approx(operations / 1000, rel=0.02)
    assert prefill_seconds(SHAPE, SLOW_PRODUCTS, 50, prompts=2) == pytest.approx(2 * operations / 1000, rel=0.02)
    assert prefill_seconds(SHAPE, SLOW_MEMORY, 50, prompts=2) == pytest.approx(2.0), "weights are read once"


def test_the_rate_of_a_load() -> None:
    load = Load(streams=2, mode="half", prompt_tokens=5, output_tokens=4, requests=4, limit=1, warm_up=0)
    wave = prefill_seconds(SHAPE, SLOW_MEMORY, 5, 2) + 3 * step_seconds(SHAPE, SLOW_MEMORY, 2, 7)
    assert tokens_per_second(SHAPE, SLOW_MEMORY, load) == pytest.approx(8 / wave)


def test_the_bandwidth_of_this_machine() -> None:
    assert 1e8 < read_bandwidth_apart() < 1e13
