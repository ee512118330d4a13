"""Checkpoints of vLLM's quantization schemes load, and compute what their rounded weights mean."""

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from model_impl import cpu
from tests.model_impl.config_fields import Fields, fields
from tests.model_impl.engines import engine, generate
from tests.model_impl.tiny import reference_logprobs, save_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

GROUP = 32
NEEDS_INT8 = pytest.mark.skipif(
    torch.cpu._is_amx_tile_supported(),
    reason="with a matrix unit (AMX) vLLM's int8 kernel refuses float32, and bfloat16 rounds more than int8 does",
)


def rounded(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric integers and the scale of each row: (rows, n), (rows, 1)."""
    scale = values.abs().amax(-1, keepdim=True).clamp_min(1e-6) / (2 ** (bits - 1) - 1)
    return (values / scale).round(), scale


def round_input(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    integers, scale = rounded(inputs[0], 8)
    return (integers * scale, *inputs[1:])


def int8_weights_and_inputs(module: torch.nn.Linear) -> dict[str, torch.Tensor]:
    """compressed-tensors W8A8: integers with a scale per output, inputs rounded per token on the way."""
    integers, scale = rounded(module.weight, 8)
    module.weight.copy_(integers * scale)
    module.register_forward_pre_hook(round_input)
    return {"weight": integers.to(torch.int8), "weight_scale": scale}


def int4_groups(module: torch.nn.Linear) -> dict[str, torch.Tensor]:
    """GPTQ: four-bit integers with a scale per output and group of inputs, eight packed into one int32."""
    outputs, inputs = module.weight.shape
    integers, scale = rounded(module.weight.view(outputs, inputs // GROUP, GROUP), 4)
    module.weight.copy_((integers * scale).view(outputs, inputs))
    unsigned = (integers.view(outputs, inputs).T + 8).to(torch.int64)  # (inputs, outputs)
    shifts = 4 * torch.arange(8)
    packed = (unsigned.view(inputs // 8, 8, outputs) << shifts[:, None]).sum(1)
    zeros = torch.full((inputs // GROUP, outputs // 8), 0x77777777)  # GPTQ stores the zero point less one
    return {
        "qweight": packed.to(torch.uint32).view(torch.int32),
        "qzeros": zeros.to(torch.int32),
        "scales": scale[..., 0].T.contiguous(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
    }


def grouped(module: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Four-bit integers (outputs, inputs) and scales (outputs, groups), which the module's weight now means."""
    outputs, inputs = module.weight.shape
    integers, scale = rounded(module.weight.view(outputs, inputs // GROUP, GROUP), 4)
    scale = scale.to(torch.bfloat16).float()
    module.weight.copy_((integers * scale).view(outputs, inputs))
    return integers.view(outputs, inputs).to(torch.int64), scale[..., 0]


def words(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers without sign, several of the last dimension in an int32."""
    shifts = bits * torch.arange(32 // bits)
    packed: torch.Tensor = (integers.unflatten(-1, (-1, 32 // bits)) << shifts).sum(-1)
    return packed.to(torch.uint32).view(torch.int32)


def packed_4_bits(module: torch.nn.Linear) -> dict[str, torch.Tensor]:
    """compressed-tensors W4A16, pack-quantized."""
    integers, scale = grouped(module)
    shape = torch.tensor(module.weight.shape)
    return {"weight_packed": words(integers + 8, 4), "weight_scale": scale, "weight_shape": shape}


def packed_8_bits(module: torch.nn.Linear) -> dict[str, torch.Tensor]:
    """compressed-tensors W8A16; of 256 integers it has 15, so that their rounding is seen beside bfloat16's."""
    integers, scale = grouped(module)
    shape = torch.tensor(module.weight.shape)
    return {"weight_packed": words(16 * integers + 128, 8), "weight_scale": scale / 16, "weight_shape": shape}


def awq(module: torch.nn.Linear) -> dict[str, torch.Tensor]:
    """AWQ: eight outputs in an int32, in an order of its own, and zero points."""
    integers, scale = grouped(module)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

    def packed(values: torch.Tensor) -> torch.Tensor:
        return words(values.unflatten(-1, (-1, 8))[..., order].flatten(-2), 4)

    zeros = torch.full(scale.T.shape, 8)
    return {"qweight": packed(integers.T + 8), "qzeros": packed(zeros), "scales": scale.T.contiguous()}


def pack_quantized(bits: int) -> dict[str, Any]:
    """The method of compressed-tensors' checkpoints with weights alone quantized."""
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True, "lm_head": False}


@torch.no_grad()
def quantize(
    folder: Path, model: PreTrainedModel, config: Fields, scheme: Callable[[torch.nn.Linear], dict[str, torch.Tensor]]
) -> None:
    """Writes the checkpoint anew with its projections quantized, and gives `model` what they now mean."""
    projections = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    tensors = {
        name: weight.clone().contiguous()
        for name, weight in model.state_dict().items()
        if name.removesuffix(".weight") not in projections
    }
    for name, module in projections.items():
        tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in scheme(module).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
VLLMS, OURS = "auto", "engine.vllm_internals.cpu_worker.TwogearCPUWorker"


@pytest.mark.engine
@pytest.mark.parametrize(
    ("method", "scheme", "dtype", "worker"),
    [
        pytest.param(W8A8, int8_weights_and_inputs, torch.float32, VLLMS, id="w8a8", marks=NEEDS_INT8),
        pytest.param(GPTQ, int4_groups, torch.bfloat16, VLLMS, id="gptq"),
        pytest.param(GPTQ, int4_groups, torch.bfloat16, OURS, id="gptq, our kernel"),
        pytest.param(AWQ, awq, torch.bfloat16, OURS, id="awq, our kernel"),
        pytest.param(pack_quantized(4), packed_4_bits, torch.bfloat16, OURS, id="w4a16, our kernel"),
        pytest.param(pack_quantized(8), packed_8_bits, torch.bfloat16, OURS, id="w8a16, our kernel"),
    ],
)
def test_a_quantized_checkpoint_is_close_to_what_its_weights_mean(
    method: dict[str, Any],
    scheme: Callable[[torch.nn.Linear], dict[str, torch.Tensor]],
    dtype: torch.dtype,
    *,
    worker: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = linear._POSSIBLE_KERNELS
    monkeypatch.setitem(kernels, PlatformEnum.CPU, [*kernels[PlatformEnum.CPU]])
    config = fields(hidden_size=128, intermediate_size=256)
    model = save_checkpoint(tmp_path, config, dtype).float()
    rng = random.Random(0)
    prompt = [rng.randrange(101) for _ in range(150)]
    unquantized = reference_logprobs(model, prompt)
    dtype_name = str(dtype).removeprefix("torch.")
    quantize(tmp_path, model, config | {"dtype": dtype_name, "quantization_config": method}, scheme)
    with engine(tmp_path, dtype=dtype_name, worker_cls=worker) as llm:
        (scored,) = generate(llm, [prompt], [20])
        if worker == OURS:
            assert cpu.verdicts()[cpu.READY_MADE.name].on
    reference = reference_logprobs(model, scored.ids)
    difference = (scored.logprobs - reference).abs().mean()
    rounding = (reference[: len(unquantized)] - unquantized).abs().mean()
    assert difference < rounding / 2, (difference, rounding)
