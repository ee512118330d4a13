"""Layers of quantized checkpoints as vLLM loads them: our kernel multiplies with what their weights mean."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_impl.cpu import native
from model_impl.cpu.native import KernelsUnavailableError, quantized_kernels
from tests.model_impl.config_fields import fields
from tests.model_impl.planner import engine_config, one_rank

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.kernels.linear import choose_mp_linear_kernel
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
    from vllm.model_executor.layers.linear import ReplicatedLinear
    from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import PlatformEnum
    from vllm.scalar_type import ScalarType, scalar_types

    from engine.loading import _explain
    from model_impl.cpu.ready_made import TwogearWNA16LinearKernel, use_kernel_for_ready_made

OUTPUTS, INPUTS = 48, 192
ROUNDED = 2**-8 + 2**-11  # a weight, to float16 and to bfloat16
AWQ_ORDER = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
"""Of eight outputs in a word."""
GROUPS_OF_96 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 96}
UINT4, GPTQ4, GPTQ8 = scalar_types.uint4, scalar_types.uint4b8, scalar_types.uint8b128


@pytest.fixture(autouse=True)
def kernels() -> None:
    try:
        quantized_kernels()
    except KernelsUnavailableError as error:
        pytest.skip(str(error))


def packed(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers without sign, several of the last dimension in a word of 32 bits."""
    each = 32 // bits
    words = (values.long().unflatten(-1, (-1, each)) << bits * torch.arange(each)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def parameter(data: torch.Tensor, output_dim: int) -> Any:
    made: Any = nn.Parameter(data.contiguous(), requires_grad=False)
    made.output_dim = output_dim
    return made


def config(kind: ScalarType, group: int, *, zeros: bool, dtype: torch.dtype = torch.bfloat16) -> MPLinearLayerConfig:
    shape = (INPUTS, OUTPUTS)
    return MPLinearLayerConfig(shape, shape, kind, dtype, group, zeros)


@pytest.mark.parametrize("outputs_first", [True, False], ids=["compressed-tensors", "gptq"])
@pytest.mark.parametrize("group", [32, 96, -1])
@pytest.mark.parametrize(("kind", "zeros"), [(GPTQ4, False), (UINT4, True), (GPTQ8, False)], ids=str)
def test_weights_mean_what_the_checkpoint_says(
    kind: ScalarType, group: int, *, zeros: bool, outputs_first: bool
) -> None:
    torch.manual_seed(0)
    bits: int = kind.size_bits
    groups = 1 if group == -1 else INPUTS // group
    values = torch.randint(0, 2**bits, (OUTPUTS, INPUTS))
    scales = (0.01 * (0.5 + torch.rand(OUTPUTS, groups))).to(torch.bfloat16)
    zero = torch.randint(0, 2**bits, (OUTPUTS, groups)) if zeros else torch.full((OUTPUTS, groups), 2 ** (bits - 1))
    weight = (values.unflatten(1, (groups, -1)) - zero[..., None]) * scales.float()[..., None]
    layer: Any = nn.Module()
    if outputs_first:
        layer.q = parameter(packed(values, bits), 0)
        layer.s = parameter(scales, 0)
        layer.z = parameter(packed(zero.T, bits).T, 0)
    else:
        layer.q = parameter(packed(values, bits).T, 1)
        layer.s = parameter(scales.T, 1)
        layer.z = parameter(packed(zero.T, bits), 1)
    kernel = TwogearWNA16LinearKernel(config(kind, group, zeros=zeros), "q", "s", "z")
    kernel.process_weights_after_loading(layer)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 0
    meant = layer.twogear_product.rows(torch.arange(OUTPUTS)).float()
    assert torch.allclose(meant, weight.flatten(1), rtol=ROUNDED, atol=0.01 * 2**-7)
    x, bias = torch.randn(5, INPUTS).to(torch.bfloat16), torch.randn(OUTPUTS).to(torch.bfloat16)
    exact = x.float() @ weight.flatten(1).T
    off = kernel.apply_weights(layer, x, bias).float() - bias.float() - exact
    assert float(off.norm() / exact.norm()) < 0.02


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (config(scalar_types.uint8, 32, zeros=True), "not uint8"),
        (config(GPTQ4, 16, zeros=False), "multiples of 32, not of 16"),
        (config(GPTQ4, 32, zeros=False, dtype=torch.float16), "--dtype bfloat16"),
    ],
    ids=["8 bits with zero points", "groups of 16", "float16"],
)
def test_what_it_does_not_take_is_left_to_vllm(refused: MPLinearLayerConfig, reason: str) -> None:
    can, why = TwogearWNA16LinearKernel.can_implement(refused)
    assert not can
    assert reason in (why or "")


@pytest.fixture
def first_in_the_list(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels of vLLM for CPUs, with ours before them."""
    before = linear._POSSIBLE_KERNELS[PlatformEnum.CPU]
    monkeypatch.setitem(linear._POSSIBLE_KERNELS, PlatformEnum.CPU, [*before])
    use_kernel_for_ready_made()
    return linear._POSSIBLE_KERNELS[PlatformEnum.CPU]


AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"}
PACKED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"all": {"targets": ["Linear"], "weights": GROUPS_OF_96}},
}


@pytest.mark.usefixtures("first_in_the_list")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("quantization", [AWQ | {"group_size": 96}, PACKED], ids=["awq", "compressed-tensors"])
def test_groups_that_do_not_divide_a_layer(quantization: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    vllm_config = engine_config(folder, fields(quantization_config=quantization), dtype=dtype)
    with (
        set_current_vllm_config(vllm_config),
        one_rank(tmp_path / "ranks"),
        pytest.raises(ValueError, match="groups of 96 weights do not divide 128 inputs, which a layer has") as why,
    ):
        initialize_model(vllm_config)
    told = _explain(why.value, str(folder))
    assert "\n" not in told
    assert f"quant_method is {quantization['quant_method']}; on a CPU" in told


def test_groups_that_reach_over_two_ranks() -> None:
    halves = MPLinearLayerConfig((INPUTS, OUTPUTS), (INPUTS // 2, OUTPUTS), UINT4, torch.bfloat16, INPUTS, True)
    with pytest.raises(ValueError, match="groups of 192 weights do not divide 96 inputs, which each of 2 ranks has"):
        TwogearWNA16LinearKernel.can_implement(halves)


@pytest.mark.usefixtures("first_in_the_list")
@pytest.mark.parametrize("group", [32, 96])
def test_an_awq_layer_as_vllm_loads_it(group: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    values, zeros = (torch.randint(0, 16, (inputs, OUTPUTS)) for inputs in (INPUTS, INPUTS // group))
    scales = (0.01 * (0.5 + torch.rand(INPUTS // group, OUTPUTS))).to(torch.bfloat16)
    weight = ((values.unflatten(0, (-1, group)) - zeros[:, None]) * scales.float()[:, None]).flatten(0, 1)
    vllm_config = engine_config(tmp_path / "model", fields(), dtype="bfloat16")
    with set_current_vllm_config(vllm_config), one_rank(tmp_path / "ranks"):
        of_file = AutoAWQConfig.from_config(AWQ | {"group_size": group})
        layer: Any = ReplicatedLinear(INPUTS, OUTPUTS, False, params_dtype=torch.bfloat16, quant_config=of_file)
        layer.qweight.data = packed(values.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1), 4)
        layer.qzeros.data = packed(zeros.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1), 4)
        layer.scales.data = scales
        layer.quant_method.process_weights_after_loading(layer)
    assert isinstance(layer.quant_method.kernel, TwogearWNA16LinearKernel)
    meant = layer.twogear_product.rows(torch.arange(OUTPUTS)).float()
    assert torch.allclose(meant, weight.T, rtol=ROUNDED, atol=0.01 * 2**-7)


def test_it_comes_first(first_in_the_list: list[Any]) -> None:
    use_kernel_for_ready_made()  # once
    assert first_in_the_list.count(TwogearWNA16LinearKernel) == 1
    assert choose_mp_linear_kernel(config(GPTQ4, 32, zeros=False)) is TwogearWNA16LinearKernel
    assert native.quantized_kernels() is not None
