"""Our matrix product beside the exact one: any shape, any bias, any strides; a row alone as in any batch."""

import ctypes
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_impl.cpu import native
from model_impl.cpu.native import KernelsUnavailableError, load

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from model_impl.cpu.packed import PackedProduct

COLUMNS = st.one_of(st.integers(1, 200), st.sampled_from([16, 48, 96, 1536]))
PAIRS = st.one_of(st.integers(1, 300), st.sampled_from([64, 128, 256, 1024]))
ROWS = st.one_of(st.integers(1, 40), st.sampled_from([64, 130, 257]))


@pytest.fixture(scope="module")
def compiled() -> ctypes.CDLL:
    try:
        return load()
    except KernelsUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=[True, False], ids=["tiles", "vectors"])
def library(compiled: ctypes.CDLL, request: pytest.FixtureRequest) -> Iterator[ctypes.CDLL]:
    if compiled.use_tiles(request.param) != request.param:
        pytest.skip("this CPU has no tiles (AMX)")
    yield compiled
    compiled.use_tiles(True)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(torch.bfloat16)


def assert_exact(product: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """As good as float32 sums that are rounded to bfloat16 once."""
    terms = x.double()[:, None] * weight.double()
    exact = terms.sum(-1) + (0 if bias is None else bias.double())
    slack = 2**-8 * exact.abs() + 2**-24 * terms.shape[-1] * terms.abs().sum(-1) + 2**-120
    assert ((product.double() - exact).abs() <= slack).all()


@settings(max_examples=150, deadline=None)
@given(shape=st.tuples(ROWS, COLUMNS, PAIRS), biased=st.booleans(), gap=st.integers(0, 9), seed=st.integers(0, 2**31))
def test_any_shape(library: ctypes.CDLL, shape: tuple[int, int, int], *, biased: bool, gap: int, seed: int) -> None:
    rows, columns, pairs = shape
    torch.manual_seed(seed)
    weight, bias = randn(columns, 2 * pairs), randn(columns) if biased else None
    x = randn(rows, 2 * pairs + gap)[:, : 2 * pairs]  # rows that do not lie one after the other
    multiply = PackedProduct(library, weight)
    product = multiply(x, weight, bias)
    assert product.shape == (rows, columns)
    assert_exact(product[:40], x[:40], weight, bias)
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(multiply(x[row : row + 1], weight, bias)[0], product[row])  # batch-invariant


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 3, 16, 150])
def test_threads_do_not_change_a_result(library: ctypes.CDLL, rows: int, threads: int) -> None:
    weight, x = randn(1000, 2048), randn(rows, 2048)
    multiply = PackedProduct(library, weight)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = multiply(x, weight, None)
        torch.set_num_threads(threads)
        assert torch.equal(multiply(x, weight, None), alone)
    finally:
        torch.set_num_threads(before)
    assert_exact(alone[:16], x[:16], weight, None)


def test_weights_of_many_huge_pages(library: ctypes.CDLL) -> None:
    weight, x = randn(2048, 4096), randn(9, 4096)
    assert_exact(PackedProduct(library, weight)(x, weight, None), x, weight, None)


def assert_as_in_parts(library: ctypes.CDLL, whole: PackedProduct, weight: torch.Tensor, rows: int) -> None:
    """Bit by bit what parts of the matrix give that are small enough to be left as they are."""
    x = randn(rows, weight.shape[1])
    product = whole(x, weight, None)
    for part, columns in zip(weight.split(96), product.split(96, dim=1), strict=True):
        plain = PackedProduct(library, part)
        assert plain.packed.numel() >= 2 * part.numel()
        assert torch.equal(plain(x, part, None).view(torch.int16), columns.contiguous().view(torch.int16))


@pytest.mark.parametrize("columns", [1536, 1501, 1552, 1569])  # groups end with one, two and three registers
def test_large_weights_take_three_quarters_of_their_bytes_and_lose_nothing(
    library: ctypes.CDLL, columns: int, request: Any
) -> None:
    torch.manual_seed(columns)
    weight = (0.02 * torch.randn(columns, 2056)).to(torch.bfloat16)
    rare = torch.randint(weight.numel(), (3000,))  # zeros, denormal numbers, outliers, several beside each other
    weight.view(-1)[rare] = (torch.randn(3000) * 10 ** torch.randint(-42, 20, (3000,))).to(torch.bfloat16)
    weight[3, 100:140], weight[-1, -9:] = 0.0, -0.0
    whole = PackedProduct(library, weight)
    in_tiles = request.node.callspec.params["library"]
    assert (whole.packed.numel() < 0.76 * 2 * weight.numel()) is not in_tiles  # these are read as they are
    for rows in (1, 2, 8, 9, 33, 150):
        assert_as_in_parts(library, whole, weight, rows)
    assert torch.equal(whole.rows(torch.arange(columns)).view(torch.int16), weight.view(torch.int16))


@settings(max_examples=50, deadline=None)
@given(columns=COLUMNS, pairs=PAIRS, seed=st.integers(0, 2**31))
def test_rows_of_any_shape_are_looked_up_bit_by_bit(library: ctypes.CDLL, columns: int, pairs: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight = randn(columns, 2 * pairs)
    ids = torch.randint(columns, (3, 5))
    assert torch.equal(PackedProduct(library, weight).rows(ids), weight[ids])


def test_a_row_that_is_not_there_is_zeros(library: ctypes.CDLL) -> None:
    rows = PackedProduct(library, randn(40, 64)).rows(torch.tensor([-1, 40, 2**40]))
    assert not rows.any()


@pytest.mark.parametrize(
    "weight",
    [
        torch.randint(-(2**15), 2**15, (1100, 2048), dtype=torch.int16).view(torch.bfloat16).nan_to_num(0.5),
        (0.02 * torch.randn(1100, 2050)).to(torch.bfloat16),
    ],
    ids=["of every exponent", "pairs that fill no blocks"],
)
def test_large_weights_that_cannot_be_made_smaller(library: ctypes.CDLL, weight: torch.Tensor) -> None:
    whole = PackedProduct(library, weight)
    assert whole.packed.numel() >= 2 * weight.numel()
    assert_as_in_parts(library, whole, weight, 9)


def test_infinities_and_nans_stay_in_their_rows_and_columns(library: ctypes.CDLL) -> None:
    weight, x = randn(50, 64), randn(11, 64)
    weight[7, 3], x[4, 5] = torch.inf, torch.nan
    product = PackedProduct(library, weight)(x, weight, None)
    assert product[4].isnan().all()
    assert not product[:, 7].isfinite().any()
    rows, columns = torch.arange(11) != 4, torch.arange(50) != 7
    assert product[rows][:, columns].isfinite().all()


def test_other_layouts_of_the_input(library: ctypes.CDLL) -> None:
    weight, x = randn(70, 64), randn(6, 64)
    multiply = PackedProduct(library, weight)
    product = multiply(x, weight, None)
    assert torch.equal(multiply(x.view(2, 3, 64), weight, None), product.view(2, 3, 70))
    assert torch.equal(multiply(x.T.contiguous().T, weight, None), product)
    assert multiply(x[:0], weight, None).shape == (0, 70)


@pytest.mark.filterwarnings("ignore")  # torch's own, as it imports its compiler
def test_a_compiled_graph_calls_it(library: ctypes.CDLL) -> None:
    weight, x = randn(70, 64), randn(6, 64)
    multiply = PackedProduct(library, weight)
    compiled = torch.compile(lambda x: multiply(x, weight, None) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), multiply(x, weight, None) + 1)


@pytest.mark.parametrize("weight", [torch.zeros(4, 6), randn(4, 7), randn(4, 6, 2), randn(0, 6)], ids=str)
def test_weights_that_it_does_not_take(library: ctypes.CDLL, weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="bfloat16 matrix"):
        PackedProduct(library, weight)


@pytest.mark.parametrize("x", [torch.zeros(3, 64), randn(3, 62)], ids=["float32", "62 columns"])
def test_an_input_that_does_not_fit_is_refused(library: ctypes.CDLL, x: torch.Tensor) -> None:
    weight = randn(70, 64)
    with pytest.raises(ValueError, match="not what these"):
        PackedProduct(library, weight)(x, weight, None)


def test_the_library_is_compiled_once(compiled: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load()
    (made,) = native.cache_folder().iterdir()
    written = made.stat().st_mtime_ns
    load()
    assert [entry.stat().st_mtime_ns for entry in native.cache_folder().iterdir()] == [written]


def test_what_is_compiled_ahead_is_waited_for(
    compiled: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\necho >> {tmp_path}/runs\nexec {shutil.which("g++")} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(native.SWITCH, "1")
    native.compile_ahead()
    load()
    for thread in threading.enumerate():
        if thread.name == native.AHEAD:
            thread.join()
    assert len((tmp_path / "runs").read_text().splitlines()) == 1
    assert len(list(native.cache_folder().iterdir())) == 1


@pytest.mark.parametrize("switch", ["0", None])
def test_nothing_is_compiled_ahead_that_is_not_asked_for(
    switch: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # empty: a thread would be there for seconds
    monkeypatch.delenv(native.SWITCH, raising=False)
    if switch is not None:
        monkeypatch.setenv(native.SWITCH, switch)
    native.compile_ahead()
    assert native.AHEAD not in [thread.name for thread in threading.enumerate()]


def test_another_source_is_another_library(
    compiled: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "kernels"
    sources.mkdir()
    for source in native.SOURCES.iterdir():
        (sources / source.name).write_bytes(source.read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "SOURCES", sources)
    load()
    (sources / "linear.cpp").write_text("this is no C++")
    with pytest.raises(KernelsUnavailableError, match=r"g\+\+ failed on ours: .*error"):
        load()


def test_without_a_compiler_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_check_cpu", lambda _information: None)
    with pytest.raises(KernelsUnavailableError, match="there is no no-such-compiler"):
        load("no-such-compiler")


def test_without_a_place_for_it_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "twogear").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_check_cpu", lambda _information: None)
    with pytest.raises(KernelsUnavailableError, match="Not a directory"):
        load()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("fpu avx2 fma", "avx512f, avx512bw, avx512vl, avx512_bf16"),
        ("avx512f avx512bw avx512vl fma amx_bf16", "avx512_bf16"),
        ("", "avx512_bf16"),
    ],
)
def test_on_another_cpu_a_sentence_says_why(flags: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelsUnavailableError, match=words):
        native._check_cpu(f"processor : 0\nflags\t\t: {flags}\n")
