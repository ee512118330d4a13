"""Attention of prompts with our kernel, held to float64 over pages that vLLM's own operation wrote."""

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

from model_impl.cpu.native import KernelsUnavailableError, load

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm import _custom_ops as ops

from tests.model_impl.decode_rig import in_bytes

try:
    LIBRARY = load()
except KernelsUnavailableError:
    pytest.skip("no kernels on this machine", allow_module_level=True)


@pytest.fixture(autouse=True, params=[True, False], ids=["tiles", "vectors"])
def _by_tiles_or_vectors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test by both ways of multiplying, where the processor has both."""
    if LIBRARY.use_tiles(request.param) != request.param:
        pytest.skip("no tiles here")
    yield
    LIBRARY.use_tiles(True)


class Heads(NamedTuple):
    queries: int
    keys: int
    size: int


class Batch(NamedTuple):
    """Requests with contexts of so many tokens, of which the last `new` are asked about."""

    lengths: list[int]
    new: list[int]
    page: int = 32
    window: int = 0


CASES = {
    "short": (Heads(4, 2, 32), Batch([5], [5])),
    "one token more than a page": (Heads(4, 2, 32), Batch([33], [33])),
    "several, some with a context": (Heads(4, 2, 32), Batch([33, 100, 7, 513], [33, 20, 1, 300])),
    "window": (Heads(8, 2, 64), Batch([300, 1000, 77], [300, 130, 5], window=128)),
    "window that ends within a block": (Heads(5, 1, 128), Batch([700], [700], window=100)),
    "window of one": (Heads(2, 2, 32), Batch([70], [70], window=1)),
    "beside a request that decodes": (Heads(32, 8, 128), Batch([1500, 40], [1, 40], window=512)),
    "large pages": (Heads(4, 4, 96), Batch([301, 64], [200, 64], page=96)),
    "more heads in a group than rows in a tile": (Heads(12, 1, 32), Batch([290], [290])),
}


class Setting:
    """Random queries, keys and values; pages in any order, what no token was written to being nan."""

    def __init__(self, heads: Heads, batch: Batch, pages: str = "auto", seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.heads, self.batch = heads, batch
        counts = [-(-length // batch.page) for length in batch.lengths]
        self.pages = torch.full((sum(counts) + 1, heads.keys, batch.page, 2 * heads.size), math.nan).bfloat16()
        if pages == "fp8":
            self.pages = self.pages.to(torch.float8_e4m3fn).view(torch.uint8)
        order = torch.randperm(sum(counts), generator=generator).int() + 1
        self.table = torch.zeros(len(counts), max(counts) + 1, dtype=torch.int32)
        self.keys, self.values = [], []
        for row, (count, length) in enumerate(zip(counts, batch.lengths, strict=True)):
            self.table[row, :count], order = order[:count], order[count:]
            key, value = (torch.randn(2, length, heads.keys, heads.size, generator=generator) * 1.5).bfloat16()
            self._write(row, key, value)
            if pages == "fp8":
                key, value = (in_bytes(one).view(torch.float8_e4m3fn) for one in (key, value))
            self.keys.append(key)
            self.values.append(value)
        wide = (heads.queries + 2 * heads.keys) * heads.size  # the queries lie beside keys and values
        qkv = torch.randn(sum(batch.new), wide, generator=generator).bfloat16()
        self.queries = qkv[:, : heads.queries * heads.size].unflatten(1, (heads.queries, heads.size))

    def _write(self, row: int, key: torch.Tensor, value: torch.Tensor) -> None:
        page = self.batch.page
        tokens = torch.arange(len(key))
        slots = self.table[row, tokens // page].long() * page + tokens % page
        if self.pages.dtype is torch.uint8:
            keep_tokens(key, value, slots, self.pages)
            return
        key_pages, value_pages = self.pages.view(len(self.pages), self.heads.keys, 2 * page, -1).chunk(2, dim=2)
        scales: dict[str, Any] = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": "auto"}
        ops.cpu_attn_reshape_and_cache(key, value, key_pages, value_pages, slots, "vec", **scales)

    def attend(self, requests: slice = slice(None), skipped: int = 0) -> torch.Tensor:
        """Of some requests, each without the first `skipped` of its new tokens."""
        new = self.batch.new[requests]
        first = sum(self.batch.new[: requests.start or 0])
        parts = self.queries[first : first + sum(new)].split(new)
        queries = torch.cat([part[skipped:] for part in parts])
        starts = torch.tensor([0, *(count - skipped for count in new)], dtype=torch.int32).cumsum(0).int()
        lengths = torch.tensor(self.batch.lengths[requests], dtype=torch.int32)
        table = self.table[requests].contiguous()
        out = torch.full(queries.shape, math.nan).bfloat16()
        LIBRARY.attend(
            queries.data_ptr(),
            queries.stride(0),
            out.data_ptr(),
            out.stride(0),
            self.pages.data_ptr(),
            self.pages.element_size(),
            self.pages.stride(0),
            self.pages.stride(1),
            self.batch.page,
            table.data_ptr(),
            table.stride(0),
            starts.data_ptr(),
            lengths.data_ptr(),
            len(lengths),
            self.heads.queries // self.heads.keys,
            self.heads.keys,
            self.heads.size,
            self.heads.size**-0.5,
            self.batch.window,
        )
        return out

    def exact(self) -> torch.Tensor:
        """The same in float64."""
        outputs = []
        for request, query in enumerate(self.queries.double().split(self.batch.new)):
            length, new = self.batch.lengths[request], self.batch.new[request]
            grouped = query.unflatten(1, (self.heads.keys, -1))
            scores = torch.einsum("mkgd,tkd->kgmt", grouped, self.keys[request].double()) * self.heads.size**-0.5
            distance = torch.arange(length - new, length)[:, None] - torch.arange(length)
            seen = (distance >= 0) & (distance < (self.batch.window or math.inf))
            weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
            outputs.append(torch.einsum("kgmt,tkd->mkgd", weights, self.values[request].double()).flatten(1, 2))
        return torch.cat(outputs)


def keep_tokens(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, pages: torch.Tensor) -> None:
    """(T, K, C) into pages of bytes."""
    LIBRARY.keep_tokens(
        *(key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0), slots.data_ptr(), len(slots)),
        *(pages.data_ptr(), pages.stride(0), pages.shape[2], pages.shape[1], key.shape[2]),
    )


@pytest.mark.parametrize("pages", ["auto", "fp8"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_attention(case: str, pages: str) -> None:
    setting = Setting(*CASES[case], pages)
    # Weights and results are rounded to bfloat16: 2^-8 of values up to about 4.
    assert torch.allclose(setting.attend().double(), setting.exact(), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("pages", ["auto", "fp8"])
@pytest.mark.parametrize("case", CASES)
def test_a_token_has_the_same_bits_alone_and_in_any_batch(case: str, pages: str) -> None:
    setting = Setting(*CASES[case], pages)
    together = setting.attend().split(setting.batch.new)
    for request, expected in enumerate(together):
        alone = slice(request, request + 1)
        assert torch.equal(setting.attend(alone), expected)
        for skipped in {1, 13, len(expected) - 2} & set(range(len(expected) - 1)):  # one token alone is a decode step's
            assert torch.equal(setting.attend(alone, skipped), expected[skipped:])


def test_large_scores_do_not_overflow() -> None:
    setting = Setting(Heads(2, 1, 64), Batch([600], [600]))
    setting.queries *= 200
    assert torch.allclose(setting.attend().double(), setting.exact(), atol=0.05, rtol=0.01)


def _every_bfloat16(page: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(T, 2, 64) of all finite ones, slots for them that leave some out, and empty pages of bytes."""
    every = torch.arange(1 << 16).to(torch.uint16).view(torch.bfloat16)
    every = torch.where(every.isfinite(), every, 0).view(-1, 2, 64)
    slots = torch.randperm(2 * len(every))[: len(every)]
    slots[::7] = -1
    return every, slots, torch.zeros(-(-2 * len(every) // page), 2, page, 128, dtype=torch.uint8)


def _written_by_vllm(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, pages: torch.Tensor) -> None:
    key_pages, value_pages = pages.view(len(pages), pages.shape[1], 2 * pages.shape[2], -1).chunk(2, dim=2)
    scales: dict[str, Any] = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": "fp8"}
    ops.cpu_attn_reshape_and_cache(key, value, key_pages, value_pages, slots, "vec", **scales)


@pytest.mark.parametrize("page", [32, 96])
def test_pages_of_bytes_are_those_of_vllm_for_numbers_that_a_byte_has(page: int) -> None:
    every, slots, ours = _every_bfloat16(page)
    theirs = ours.clone()
    exact = in_bytes(every).view(torch.float8_e4m3fn).bfloat16() + 0.0  # vLLM has no negative zero
    _written_by_vllm(exact, exact.flip(0), slots, theirs)
    keep_tokens(exact, exact.flip(0), slots, ours)
    assert torch.equal(ours, theirs)


def test_a_number_is_rounded_to_the_nearest_byte() -> None:
    every, slots, ours = _every_bfloat16()
    theirs = ours.clone()
    keep_tokens(every, every, slots, ours)
    rounded, expected = in_bytes(every), ours.clone().zero_()
    _written_by_vllm(rounded.view(torch.float8_e4m3fn).bfloat16(), every * 0, slots, expected)
    keys, expected_keys = (
        pages.view(len(pages), 2, 2, -1)[:, :, 0].view(torch.float8_e4m3fn) for pages in (ours, expected)
    )
    assert torch.equal(keys.float(), expected_keys.float())
    _written_by_vllm(every, every, slots, theirs)  # cuts off
    here, there = (pages.view(torch.float8_e4m3fn).float().abs() for pages in (ours, theirs))
    assert (there <= here).all()
    assert (there < here).float().mean() > 0.01
