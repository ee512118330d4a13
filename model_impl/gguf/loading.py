"""vLLM's loader for a folder that stands for a GGUF file, and the layers that multiply with its blocks.

Weights go from the file into a layer's parameters as integers with a scale and a smallest value for each 32, and from
there into the layout of our kernels (`model_impl.cpu.quantized`). Projections that are computed as one may be of
different types in a file (Q4_K_M has values in 6 bits beside keys in 4): all are held in 8 bits then.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.parameter import GroupQuantScaleParameter, ModelWeightParameter

from model_impl.cpu import READY_MADE, note
from model_impl.cpu.native import KernelsUnavailableError, quantized_kernels
from model_impl.cpu.quantized import QuantizedProduct
from model_impl.gguf import INDEX, LINK, LOAD_FORMAT, METHOD
from model_impl.gguf.blocks import dense, packable
from model_impl.weights import SHARED

_PARTS = ("weight", "weight_steps", "weight_least")
"""The parameters of a layer until it is packed."""


@register_model_loader(LOAD_FORMAT)
class GgufLoader(BaseModelLoader):
    """Reads the file as the folder's index says."""

    def download_model(self, model_config: Any) -> None:
        """Nothing: the file is here."""

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Gives the model its weights, under transformers' names."""
        packed = model_config.quantization == METHOD
        weights = weights_of(Path(model_config.model), packed=packed)
        model.load_weights(packed_as_loaded(model, weights) if packed else weights)


def weights_of(folder: Path, *, packed: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a folder that stands for a file; matrices in three parts if `packed`, else in bfloat16.

    Raises ValueError for a file that has changed, and weights that cannot be had so.
    """
    index, path = json.loads((folder / INDEX).read_text(encoding="utf-8")), (folder / LINK).resolve()
    status = path.stat()
    if (status.st_size, status.st_mtime_ns) != (index["size"], index["changed"]):
        raise ValueError(f"{path} has changed since this start began: start again")
    data = np.memmap(path, np.uint8, "r")
    for name, kind, shape, offset, size, heads in index["tensors"]:
        matrix = data[offset : offset + size].reshape(shape[0] if len(shape) == 2 else 1, -1)
        try:
            yield from _parts(name, kind, shape, _in_order(matrix, heads), packed=packed and len(shape) == 2)
        except ValueError as error:
            raise ValueError(f"{path}: {name} cannot be used: {error}") from error


def packed_as_loaded(
    model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """`weights`, and behind the last one of a layer its packing, so that few are there in two forms."""
    fused: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    waited_for: dict[str, tuple[Any, set[str]]] = {}
    for name, layer in model.named_modules():
        if isinstance(getattr(layer, "quant_method", None), GgufMethod):
            parent, _, last = name.rpartition(".")
            missing = {f"{parent}.{one}.{part}".lstrip(".") for one in fused.get(last, [last]) for part in _PARTS}
            waited_for |= dict.fromkeys(missing, (layer, missing))
    for name, weight in weights:
        yield name, weight
        layer, missing = waited_for.get(name, (None, set()))
        missing.discard(name)
        if layer is not None and not missing:
            layer.quant_method.process_weights_after_loading(layer)


def _parts(name: str, kind: str, shape: list[int], rows: Any, *, packed: bool) -> Iterator[tuple[str, torch.Tensor]]:
    if not packed:
        widened = torch.empty(shape if len(shape) == 2 else [1, *shape], dtype=torch.bfloat16)
        for first in range(0, len(rows), 2048):
            some = slice(first, first + 2048)
            widened[some] = torch.from_numpy(dense(kind, np.array(rows[some])))
        yield name, widened.view(shape)
        return
    layer = name.removesuffix("weight")
    for part, array in zip(_PARTS, packable(kind, np.ascontiguousarray(rows), *shape), strict=True):
        yield layer + part, torch.from_numpy(array)


def _in_order(rows: Any, heads: int) -> Any:
    """Rows whose heads were interleaved, as the checkpoint had them."""
    if not heads:
        return rows
    return rows.reshape(heads, len(rows) // heads // 2, 2, -1).swapaxes(1, 2).reshape(len(rows), -1)


@register_quantization_config(METHOD)
class GgufConfig(QuantizationConfig):
    """Which layers have their weights in a file's blocks: all projections, the input embedding and the output head."""

    @classmethod
    def get_name(cls) -> Any:
        """By vLLM's contract."""
        return METHOD

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Rows of bfloat16 are what our kernels round."""
        return [torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        """None is needed: this is for CPUs."""
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Beside config.json there is none."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GgufConfig":  # noqa: ARG003 - vLLM's signature
        """There is nothing to set. Raises ValueError where the kernels cannot be had."""
        try:
            quantized_kernels()
        except KernelsUnavailableError as error:
            raise ValueError(f"weights from GGUF need kernels that are compiled on this machine: {error}") from error
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:  # noqa: ARG002 - vLLM's
        """Ours for a layer with a matrix."""
        return GgufMethod() if isinstance(layer, LinearBase | VocabParallelEmbedding) else None


@register_weight_loader_v2_supported_method
class GgufMethod(LinearMethodBase):
    """A layer of a file: loaded in three parts, multiplied by our kernels."""

    def create_weights(  # noqa: PLR0917 - vLLM's signature
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,  # noqa: ARG002 - vLLM's signature
        output_size: int,  # noqa: ARG002
        params_dtype: torch.dtype,  # noqa: ARG002
        **extra_weight_attrs: Any,
    ) -> None:
        """Room for the parts. Raises ValueError where groups do not divide this rank's share of a row."""
        inputs, outputs = input_size_per_partition, sum(output_partition_sizes)
        if inputs % SHARED:
            raise ValueError(f"rows of {inputs} weights cannot be divided into groups of {SHARED}")
        layer.gguf_outputs = output_partition_sizes
        places = {"input_dim": 1, "output_dim": 0, "weight_loader": extra_weight_attrs["weight_loader"]}
        values = torch.empty(outputs, inputs, dtype=torch.int8)
        layer.register_parameter("weight", ModelWeightParameter(data=values, **places))
        for name in _PARTS[1:]:
            of_groups = torch.empty(outputs, inputs // SHARED, dtype=torch.float32)
            layer.register_parameter(name, GroupQuantScaleParameter(data=of_groups, **places))

    def process_weights_after_loading(self, layer: Any) -> None:
        """Lays the weights out for our kernels; what was loaded is given up."""
        if layer.weight.numel() == 0:
            return
        values, steps, least = (getattr(layer, name).data for name in _PARTS)
        parts = [each.split(layer.gguf_outputs) for each in (values, steps, least)]
        in_4_bits = [bool(part.any()) for part in parts[2]]
        if not all(in_4_bits):
            for is_4, own in zip(in_4_bits, zip(*parts, strict=True), strict=True):
                if is_4:
                    _widen(*own)
        layer.cpu_linear = QuantizedProduct.of_integers(values, steps, least, 4 if all(in_4_bits) else 8)
        for name, part in zip(_PARTS, (values, steps, least), strict=True):
            getattr(layer, name).data = part.new_empty(0)  # who loads a model has a list of its parameters
            setattr(layer, name, nn.Parameter(torch.empty(0, dtype=torch.int8), requires_grad=False))
        note(READY_MADE, None)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        product: QuantizedProduct = layer.cpu_linear
        return product(x, x, bias)

    def embedding(self, layer: Any, input_: torch.Tensor) -> torch.Tensor:
        """Ids to vectors."""
        product: QuantizedProduct = layer.cpu_linear
        return product.rows(input_)

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:  # noqa: ARG002 - vLLM's signature
        """The embedding is the output head as well."""
        return embed_tokens


def _widen(values: torch.Tensor, steps: torch.Tensor, least: torch.Tensor) -> None:
    """Has a part of 4 bits be one of 8, in place."""
    weights = values.unflatten(1, (-1, SHARED)) * steps[..., None] + least[..., None]
    steps.copy_(weights.abs().amax(-1) / 127)
    values.copy_((weights / steps.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round_().flatten(1))
    least.zero_()
