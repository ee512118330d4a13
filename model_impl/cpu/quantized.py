"""Weights in 8 or 4 bits on CPU: quantized as they are loaded, layer by layer, and multiplied by our own kernels.

Takes vLLM's place where `packed` does, for all projections, the input embedding and the output head of a model. What a
format is, and how products are computed, is in `kernels/quantized.h`. Products run on every x86-64, faster where the
CPU has AVX512-VNNI or AMX.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from model_impl.cpu import PACKED, note, quantized_cache
from model_impl.cpu.demand_zero import room
from model_impl.cpu.native import KernelsUnavailableError, quantized_kernels
from model_impl.cpu.packed import product_by
from model_impl.weights import BITS, TABLE_BITS, Format

_KEPT = "twogear_kept_weights"
"""An attribute of a model that has not been loaded yet."""


class QuantizedProduct:
    """`x @ weight.T + bias` for bfloat16 rows, which are rounded to 8 bits on the way, with weights in 8 or 4 bits.

    A row's result does not depend on the other rows. `packed`: as the kernels lay a weight of (outputs, inputs) out.
    """

    def __init__(self, packed: torch.Tensor, outputs: int, inputs: int) -> None:
        self.packed, self.outputs, self.inputs = packed, outputs, inputs

    @classmethod
    def of(cls, weight: torch.Tensor, bits: int) -> "QuantizedProduct":
        """Of a matrix of numbers, rounded to the nearest that so many bits have. Raises ValueError for other things."""
        if weight.ndim != 2 or not weight.is_floating_point() or weight.numel() == 0:
            raise ValueError(f"not a matrix of numbers: {weight.dtype} {tuple(weight.shape)}")
        weight = weight.detach().to(torch.bfloat16).contiguous()
        outputs, inputs = weight.shape
        packed = _room_for(outputs, inputs, bits)
        if not quantized_kernels().quantize(weight.data_ptr(), outputs, inputs, bits, packed.data_ptr()):
            raise ValueError("a weight is infinite or not a number")
        return cls(packed, outputs, inputs)

    @classmethod
    def of_integers(
        cls, values: torch.Tensor, scales: torch.Tensor, least: torch.Tensor, bits: int
    ) -> "QuantizedProduct":
        """Of a matrix that is quantized already: `values` (outputs, inputs) in int8, times scale, plus least value.

        `scales` and `least`: (outputs, groups) in float32, a group a multiple of 32. 8 bits have no least value.
        """
        outputs, inputs = values.shape
        group = inputs // scales.shape[1]
        packed = _room_for(outputs, inputs, bits)
        parts = [part.contiguous() for part in (values, scales, least)]
        pointers = [part.data_ptr() for part in parts]
        quantized_kernels().pack_quantized(*pointers, outputs, inputs, group, bits, packed.data_ptr())
        return cls(packed, outputs, inputs)

    def __call__(self, x: torch.Tensor, _weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """(..., inputs) to (..., outputs); called as vLLM calls `layer.cpu_linear`, whose weight is not needed here."""
        if torch.compiler.is_compiling():
            product: torch.Tensor = torch.ops.twogear.quantized_product(x, self.packed, bias, self.outputs)
            return product
        return _product(x, self.packed, bias, self.outputs)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) to (..., inputs): the weights of those outputs, which for an embedding are its vectors."""
        if torch.compiler.is_compiling():
            rows: torch.Tensor = torch.ops.twogear.quantized_rows(ids, self.packed, self.inputs)
            return rows
        return _rows(ids, self.packed, self.inputs)


class QuantizedLinearMethod(UnquantizedLinearMethod):
    """vLLM's method for unquantized projections, with the weight in so many bits once it is loaded."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Quantizes the loaded weight, which is then given up; nothing where that was done."""
        _quantize(layer, self.bits)


class QuantizedTableMethod(UnquantizedEmbeddingMethod):
    """The same for an input embedding or an output head.

    `whose`: the layer that has the weight, where another has it. `sharers`: those whose weight is this one.
    """

    def __init__(self, bits: int, whose: Any = None, sharers: Sequence[Any] = ()) -> None:
        super().__init__()
        self.bits, self._whose, self._sharers = bits, whose, sharers

    @property
    def is_shared(self) -> bool:
        """Whether the weight is another layer's."""
        return self._whose is not None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Quantizes the loaded weight, which is then given up; nothing where that was done, or another's is it."""
        if self._whose is None and _quantize(layer, self.bits):
            self.share(layer)

    def share(self, layer: nn.Module) -> None:
        """Has those whose weight is this layer's give theirs up as well."""
        for sharer in self._sharers:
            sharer.weight = layer.weight

    def embedding(self, layer: nn.Module, input_: torch.Tensor) -> torch.Tensor:
        """Ids to vectors."""
        return self._product(layer).rows(input_)

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(rows, inputs) to (rows, outputs)."""
        return self._product(layer)(x, x, bias)

    def _product(self, layer: Any) -> QuantizedProduct:
        product: QuantizedProduct = (layer if self._whose is None else self._whose).cpu_linear
        return product


def use_quantized_products(
    model: nn.Module, embedding: nn.Module, head: nn.Module, weights: Format, kept: Path | None
) -> None:
    """Gives all layers of a model that was just built the methods above.

    `kept`: the file of the packed weights of its checkpoint, which the first load reads or writes.

    Raises ValueError if a layer is quantized already, or there are no kernels.
    """
    try:
        quantized_kernels()
    except KernelsUnavailableError as error:
        raise ValueError(f"--weights {weights} needs kernels that are compiled on this machine: {error}") from error
    layer: Any
    for name, layer in model.named_modules():
        method = getattr(layer, "quant_method", None)
        if type(method) is UnquantizedLinearMethod:
            layer.quant_method = QuantizedLinearMethod(BITS[weights])
        elif method is not None and hasattr(layer, "weight_loader") and layer not in (embedding, head):
            raise ValueError(
                f"--weights {weights} is for checkpoints in bfloat16 or float32; {name} is quantized already"
            )
    tied = head is not embedding and getattr(head, "weight", None) is getattr(embedding, "weight", head)
    bits = TABLE_BITS[weights]
    for layer, method in (
        (embedding, QuantizedTableMethod(bits, sharers=[head] if tied else [])),
        (head, QuantizedTableMethod(bits, whose=embedding if tied else None)),
    ):
        if type(getattr(layer, "quant_method", None)) is UnquantizedEmbeddingMethod:
            layer.quant_method = method
    vars(model)[_KEPT] = kept


def quantized_as_loaded(
    model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]], packed: Mapping[str, list[str]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """`weights`, and behind the last one of a layer its quantization, so that few are there twice.

    The first time for a model, packed weights that an earlier start has kept take the place of a checkpoint's.
    `packed`: by the name of a layer, those that a checkpoint has in its place.
    """
    kept: Path | None = vars(model).pop(_KEPT, None)
    restored = kept is not None and _restore(model, quantized_cache.read(kept))
    waited_for: dict[str, tuple[Any, set[str]]] = {}
    for name, layer in _layers(model).items():
        parent, _, last = name.rpartition(".")
        parts = [f"{parent}.{part}.weight".lstrip(".") for part in packed.get(last, [last])]
        shared = set(parts)
        waited_for |= dict.fromkeys(parts, (layer, shared))
    for name, weight in weights:
        if (waiting := waited_for.get(name)) is None:
            yield name, weight
            continue
        if restored:
            continue
        layer, missing = waiting
        method = layer.quant_method
        if isinstance(method, QuantizedTableMethod) and method.is_shared:
            continue
        yield name, weight
        missing.discard(name)
        if not missing:
            method.process_weights_after_loading(layer)
    if kept is not None and not restored:
        _keep(model, kept)


def restored_names(model: nn.Module) -> set[str]:
    """The parameters of a model whose layers have their packed weights already."""
    return {f"{name}.weight" for name, layer in _layers(model).items() if hasattr(layer, "cpu_linear")}


def _restore(model: nn.Module, matrices: Mapping[str, quantized_cache.Matrix]) -> bool:
    """Whether these are the packed weights of all layers, which then have them."""
    owners = _owners(model)
    if {name: tuple(layer.weight.shape) for name, layer in owners.items()} != {
        name: (matrix.outputs, matrix.inputs) for name, matrix in matrices.items()
    }:
        return False
    for name, layer in owners.items():
        _give(layer, QuantizedProduct(*matrices[name]))
        if isinstance(layer.quant_method, QuantizedTableMethod):
            layer.quant_method.share(layer)
    return True


def _keep(model: nn.Module, path: Path) -> None:
    """Writes the packed weights, if all layers have theirs."""
    owners = _owners(model)
    if all(hasattr(layer, "cpu_linear") for layer in owners.values()):
        products = {name: layer.cpu_linear for name, layer in owners.items()}
        quantized_cache.keep(
            path,
            {name: quantized_cache.Matrix(own.packed, own.outputs, own.inputs) for name, own in products.items()},
        )


def _owners(model: nn.Module) -> dict[str, Any]:
    """By name, the layers with packed weights of their own."""
    return {
        name: layer
        for name, layer in _layers(model).items()
        if not (isinstance(layer.quant_method, QuantizedTableMethod) and layer.quant_method.is_shared)
    }


def _layers(model: nn.Module) -> dict[str, Any]:
    """By name, those whose weights are quantized."""
    kinds = (QuantizedLinearMethod, QuantizedTableMethod)
    return {
        name: layer for name, layer in model.named_modules() if isinstance(getattr(layer, "quant_method", None), kinds)
    }


def _quantize(layer: Any, bits: int) -> bool:
    """Whether there was a weight to quantize."""
    weight: torch.Tensor = layer.weight
    if weight.is_meta or weight.numel() == 0:
        return False
    try:
        product = QuantizedProduct.of(weight, bits)
    except ValueError as error:
        raise ValueError(f"{getattr(layer, 'prefix', type(layer).__name__)} cannot be quantized: {error}") from error
    _give(layer, product)
    return True


def _give(layer: Any, product: QuantizedProduct) -> None:
    layer.cpu_linear = product
    layer.weight = nn.Parameter(torch.empty(0, dtype=layer.weight.dtype), requires_grad=False)
    note(PACKED, None)


def _room_for(outputs: int, inputs: int, bits: int) -> torch.Tensor:
    return room(quantized_kernels().quantized_size(outputs, inputs, bits))


def _product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, outputs: int) -> torch.Tensor:
    return product_by(quantized_kernels().quantized_linear, x, packed, bias, outputs)


def _rows(ids: torch.Tensor, packed: torch.Tensor, inputs: int) -> torch.Tensor:
    ids = ids.long().contiguous()
    y = torch.empty(*ids.shape, inputs, dtype=torch.bfloat16)
    quantized_kernels().quantized_lookup(packed.data_ptr(), ids.data_ptr(), ids.numel(), y.data_ptr())
    return y


# Through torch's dispatcher only where a graph is compiled: it costs more than a call of ctypes.
@torch.library.custom_op("twogear::quantized_product", mutates_args=())
def _quantized_product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, outputs: int) -> torch.Tensor:
    return _product(x, packed, bias, outputs)


@_quantized_product.register_fake
def _(x: torch.Tensor, _packed: torch.Tensor, _bias: torch.Tensor | None, outputs: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


@torch.library.custom_op("twogear::quantized_rows", mutates_args=())
def _quantized_rows(ids: torch.Tensor, packed: torch.Tensor, inputs: int) -> torch.Tensor:
    return _rows(ids, packed, inputs)


@_quantized_rows.register_fake
def _(ids: torch.Tensor, _packed: torch.Tensor, inputs: int) -> torch.Tensor:
    return ids.new_empty(*ids.shape, inputs, dtype=torch.bfloat16)
