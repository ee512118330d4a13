"""Products with weights in 8 and 4 bits: beside the exact ones of what the weights mean, and the same in every way."""

import ctypes
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_impl.cpu import native
from model_impl.cpu.native import KernelsUnavailableError, quantized_kernels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from model_impl.cpu.quantized import QuantizedProduct

COLUMNS = st.one_of(st.integers(1, 200), st.sampled_from([16, 64, 256]))
INPUTS = st.one_of(st.integers(1, 300), st.sampled_from([32, 64, 1024, 2048]))
ROWS = st.one_of(st.integers(1, 40), st.sampled_from([64, 257]))
WAYS = PLAIN, VECTORS, TILES, BEST = range(4)


@pytest.fixture(scope="module", autouse=True)
def library() -> ctypes.CDLL:
    try:
        return quantized_kernels()
    except KernelsUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def all_ways(library: ctypes.CDLL) -> Iterator[None]:
    yield
    library.quantized_by(BEST)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(torch.bfloat16)


def meant(product: QuantizedProduct) -> torch.Tensor:
    """The weights that a product multiplies with, rounded to bfloat16."""
    return product.rows(torch.arange(product.outputs))


def relative(difference: torch.Tensor, values: torch.Tensor) -> float:
    return float(difference.double().norm() / values.double().norm())


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(ROWS, COLUMNS, INPUTS),
    bits=st.sampled_from([8, 4]),
    biased=st.booleans(),
    gap=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_any_shape(
    library: ctypes.CDLL, shape: tuple[int, int, int], bits: int, *, biased: bool, gap: int, seed: int
) -> None:
    rows, columns, inputs = shape
    torch.manual_seed(seed)
    weight, bias = randn(columns, inputs), randn(columns) if biased else None
    x = randn(rows, inputs + gap)[:, :inputs]  # rows that do not lie one after the other
    multiply = QuantizedProduct.of(weight, bits)
    by_way = []
    for way in WAYS:
        library.quantized_by(way)
        by_way.append(multiply(x, weight, bias))
    assert torch.equal(by_way[PLAIN], by_way[VECTORS])
    assert torch.equal(by_way[BEST], by_way[TILES])
    for way, product in zip(WAYS, by_way, strict=True):
        library.quantized_by(way)
        check(multiply, x, bias, product)


def check(multiply: QuantizedProduct, x: torch.Tensor, bias: torch.Tensor | None, product: torch.Tensor) -> None:
    """That it is near to the exact one, and that each row is the same alone, and among a few."""
    rows = len(x)
    terms = x.double().norm(dim=-1)[:, None] * meant(multiply).double().norm(dim=-1)
    exact = x.double() @ meant(multiply).double().T + (0 if bias is None else bias.double())
    assert ((product.double() - exact).abs() <= 0.02 * terms + 0.01 * exact.abs() + 1e-6).all()
    for row in {rows // 2, rows - 1}:
        for others in 1, 7, 20:  # each is computed otherwise
            some = multiply(x[max(0, row + 1 - others) : row + 1], x, bias)
            assert torch.equal(some[-1], product[row])  # batch-invariant


@pytest.mark.parametrize("rows", [1, 4, 5, 16, 33, 100])
@pytest.mark.parametrize("columns", [10, 20, 40, 64, 130])  # panels that are multiplied at once: one to four
@pytest.mark.parametrize("bits", [8, 4])
def test_tiles_multiply_what_is_meant(library: ctypes.CDLL, bits: int, columns: int, rows: int) -> None:
    if library.quantized_by(TILES) != TILES:
        pytest.skip("no tiles")
    torch.manual_seed(rows)
    weight, x = randn(columns, 333), randn(rows, 333)
    multiply = QuantizedProduct.of(weight, bits)
    exact = x.double() @ meant(multiply).double().T
    sums = 1e-6 * x.double().norm(dim=-1)[:, None] * meant(multiply).double().norm(dim=-1)
    assert ((multiply(x, weight, None).double() - exact).abs() <= exact.abs() * 2.0**-8 + sums).all()


def test_what_tiles_make_of_the_smallest_and_largest_numbers(library: ctypes.CDLL) -> None:
    if library.quantized_by(TILES) != TILES:
        pytest.skip("no tiles")
    sizes = 2.0**-133, 2.0**-90, 2.0**-61, 2.0**-60, 1.0, 2.0**47, 2.0**48
    weight = torch.full((20, 64), 2.0**10)
    x = torch.tensor(sizes)[:, None].expand(-1, 64).bfloat16()
    product = QuantizedProduct.of(weight, 8)(x, weight, None)
    assert product[:, 0].tolist() == [0, 0, 0, 2.0**-44, 2.0**16, 2.0**63, torch.inf]
    assert (product == product[:, :1]).all()


@pytest.mark.parametrize(("bits", "most"), [(8, 0.0065), (4, 0.08)])
def test_weights_are_rounded_little(bits: int, most: float) -> None:
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(300, 1000)
    product = QuantizedProduct.of(weight, bits)
    assert relative(meant(product) - weight, weight) < most
    x = randn(20, 1000)
    assert relative(product(x, x, None) - x.float() @ weight.T, x.float() @ weight.T) < most + 0.01


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-4, 1.0, 1e4, 1e30])
def test_weights_of_any_size(bits: int, size: float) -> None:
    torch.manual_seed(0)
    weight, x = size * torch.randn(40, 96), randn(6, 96)
    product = QuantizedProduct.of(weight, bits)
    assert relative(meant(product) - weight, weight) < 0.1
    assert relative(product(x, weight, None) - x.float() @ weight.T, x.float() @ weight.T) < 0.12


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("smaller", [2.0**-10, 2.0**-24, 2.0**-33])
def test_a_group_far_smaller_than_others_of_its_matrix(bits: int, smaller: float) -> None:
    torch.manual_seed(0)
    weight = randn(40, 96)
    weight[:, 32:64] *= smaller
    off = (meant(QuantizedProduct.of(weight, bits)).float() - weight)[:, 32:64].abs()
    step = weight[:, 32:64].abs().amax(1, keepdim=True) * 2 / (254 if bits == 8 else 15)
    rounded = weight[:, 32:64].abs() * 2.0**-8  # what is meant is in bfloat16 as well
    least = 2.0**-28  # of the largest: nothing is smaller
    assert (off <= 0.75 * step + rounded + weight.abs().max() * least).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_that_are_all_the_same(bits: int) -> None:
    weight = torch.zeros(20, 70)
    weight[3], weight[4] = 0.5, -0.25
    assert torch.equal(meant(QuantizedProduct.of(weight, bits)).float()[5:], weight[5:])
    assert relative(meant(QuantizedProduct.of(weight, bits)).float() - weight, weight) < 0.005


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 16, 150])
def test_threads_do_not_change_a_result(rows: int, threads: int) -> None:
    weight, x = randn(1000, 1024), randn(rows, 1024)
    multiply = QuantizedProduct.of(weight, 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = multiply(x, weight, None)
        torch.set_num_threads(threads)
        assert torch.equal(multiply(x, weight, None), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("way", WAYS)
def test_infinities_and_nans_stay_in_their_rows(library: ctypes.CDLL, way: int) -> None:
    weight, x = randn(50, 64), randn(20, 64)
    x[4, 5], x[7, 40] = torch.nan, torch.inf
    library.quantized_by(way)
    product = QuantizedProduct.of(weight, 8)(x, weight, None)
    assert not product[[4, 7]].isfinite().any()
    rows = [row for row in range(20) if row not in {4, 7}]
    assert product[rows].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    weight = randn(50, 64)
    weight[7, 3] = value
    with pytest.raises(ValueError, match="infinite or not a number"):
        QuantizedProduct.of(weight, 8)


@pytest.mark.parametrize("x", [torch.zeros(3, 64), randn(3, 62)], ids=["float32", "62 columns"])
def test_an_input_that_does_not_fit_is_refused(x: torch.Tensor) -> None:
    weight = randn(70, 64)
    with pytest.raises(ValueError, match="not what these"):
        QuantizedProduct.of(weight, 4)(x, weight, None)


def test_other_layouts_of_the_input() -> None:
    weight, x = randn(70, 64), randn(6, 64)
    multiply = QuantizedProduct.of(weight, 8)
    product = multiply(x, weight, None)
    assert torch.equal(multiply(x.view(2, 3, 64), weight, None), product.view(2, 3, 70))
    assert torch.equal(multiply(x.T.contiguous().T, weight, None), product)
    assert multiply(x[:0], weight, None).shape == (0, 70)


@pytest.mark.filterwarnings("ignore")  # torch's own, as it imports its compiler
def test_a_compiled_graph_calls_it() -> None:
    weight, x, ids = randn(70, 64), randn(6, 64), torch.tensor([3, 0, 69])
    multiply = QuantizedProduct.of(weight, 8)
    compiled = torch.compile(
        lambda x, ids: multiply(x, weight, None)[:3] @ multiply.rows(ids).T.new_ones(70, 2) + multiply.rows(ids)[:, :2],
        backend="aot_eager",
        fullgraph=True,
    )
    assert torch.equal(compiled(x, ids), multiply(x, weight, None)[:3] @ x.new_ones(70, 2) + multiply.rows(ids)[:, :2])


def test_a_cpu_without_our_other_kernels_multiplies_the_same(
    tmp_path: Path, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_information: str) -> None:
        raise KernelsUnavailableError("another CPU")

    weight, x = randn(70, 130), randn(9, 130)
    product = QuantizedProduct.of(weight, 8)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_check_cpu", refuse)
    other = quantized_kernels.__wrapped__()
    y = torch.empty(9, 70, dtype=torch.bfloat16)
    assert other.quantized_linear(x.data_ptr(), 9, 130, 130, product.packed.data_ptr(), 70, None, y.data_ptr())
    assert other._name != library._name
    assert torch.allclose(y.float(), product(x, weight, None).float(), rtol=0.02, atol=0.02)
