"""The passes between the products give what vLLM's layers give, bit for bit but for the last place of a float32 sum."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional

from model_impl.cpu.native import KernelsUnavailableError, load
from tests.model_impl.engines import engine, generate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.rotary_embedding import get_rope

    from model_impl.cpu.fused import FusedOperations

EPS = 1e-5


@pytest.fixture(scope="module")
def fused() -> FusedOperations:
    try:
        return FusedOperations(load())
    except KernelsUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def bfloat16_layers() -> Iterator[None]:
    """Layers are made within vLLM's config, in the model's type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with warnings.catch_warnings(), set_current_vllm_config(VllmConfig()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


def randn(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, dtype=torch.float32) * scale).to(torch.bfloat16)


def make_norm(width: int) -> RMSNorm:
    norm = RMSNorm(width, eps=EPS)
    norm.weight.data = randn(width) + 1
    return norm


def plain(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """The norm as vLLM computes it in plain torch."""
    y = norm.forward_native(x)
    assert isinstance(y, torch.Tensor)
    return y


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """The sum of squares may round to another float32, which now and then is another bfloat16."""
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=2**-9)
    assert (got != expected).sum() <= 0.002 * got.numel()


@pytest.mark.parametrize("width", [16, 48, 128, 2048])
@pytest.mark.parametrize("rows", [0, 1, 5, 70])
def test_norm_with_and_without_a_residual(fused: FusedOperations, rows: int, width: int) -> None:
    torch.manual_seed(width + rows)
    norm, x, residual = make_norm(width), randn(rows, width, scale=3), randn(rows, width)
    with torch.no_grad():
        assert_same(fused.norm(x, norm), plain(norm, x))
        assert_same(fused.add_norm(residual, x, norm), residual + plain(norm, x))


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("size", [32, 64, 96, 128])
@pytest.mark.parametrize("rows", [1, 40])
def test_heads_are_normalised_and_rotated_in_place(
    fused: FusedOperations, rows: int, size: int, *, rotates: bool
) -> None:
    torch.manual_seed(size)
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    rope = get_rope(size, 512, rope_parameters=parameters) if rotates else None
    sizes = [4 * size, 2 * size, 2 * size]
    norms, positions = (make_norm(size), make_norm(size)), torch.randint(512, (rows,))
    qkv = randn(rows, sum(sizes), scale=2)
    q, k, v = (part.clone() for part in qkv.split(sizes, dim=-1))
    with torch.no_grad():
        q, k = (
            plain(norm, part.unflatten(-1, (-1, size))).flatten(-2) for norm, part in zip(norms, (q, k), strict=True)
        )
        if rope is not None:
            rope.forward_cpu(positions, q, k)  # in place
        fused.norm_rope_(qkv, sizes, norms, positions, rope)
    assert_same(qkv, torch.cat((q, k, v), -1))
    assert torch.equal(qkv[:, -sizes[2] :], v)


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (3, 512), (40, 4096)])
def test_gated_silu(fused: FusedOperations, rows: int, width: int) -> None:
    torch.manual_seed(width)
    x = randn(rows, 2 * width, scale=6)
    expected = functional.silu(x[:, :width]) * x[:, width:]
    assert_same(fused.silu_mul(x), expected)
    assert torch.equal(fused.silu_mul(x[rows // 2 : rows // 2 + 1])[0], fused.silu_mul(x)[rows // 2])


def test_gated_silu_of_every_bfloat16(fused: FusedOperations) -> None:
    gate = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    gate = gate[(gate.float().abs() > 1e-30) | (gate == 0)]  # AVX512-BF16 takes subnormal numbers as zero
    gate = gate[: len(gate) // 16 * 16]
    got = fused.silu_mul(torch.cat((gate, torch.ones_like(gate)))[None])[0]
    expected = functional.silu(gate)
    assert torch.equal(got.isnan(), expected.isnan())
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=1e-30, equal_nan=True)


@pytest.mark.engine
def test_an_engine_scores_alike_with_and_without(
    fused: FusedOperations, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers of each kind in bfloat16, products and passes of ours against vLLM's: apart by rounding alone."""
    from tests.model_impl.config_fields import fields
    from tests.model_impl.tiny import reference_logprobs, save_checkpoint

    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("model")
    model = save_checkpoint(folder, fields(hidden_size=128, intermediate_size=256, head_dim=32), torch.bfloat16).float()
    prompt = [(7 * place) % 101 for place in range(120)]
    errors = {}
    for switch in ("1", "0"):
        monkeypatch.setattr("model_impl.cpu.packed.kernels", (lambda: None) if switch == "0" else load)
        monkeypatch.setattr("model_impl.cpu.fused.kernels", (lambda: None) if switch == "0" else load)
        with engine(folder, dtype="bfloat16") as llm:
            decoder = llm.llm_engine.model_executor.driver_worker.model_runner.model.model
            assert (decoder.layers[0].fused is not None) == (switch == "1")
            (scored,) = generate(llm, [prompt], [20])
            assert (decoder.decode is not None and decoder.decode.took_last) == (switch == "1")
        errors[switch] = float((scored.logprobs - reference_logprobs(model, scored.ids)).abs().mean())
    assert errors["1"] < 1.2 * errors["0"] + 1e-3, errors
