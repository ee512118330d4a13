"""The model's matrix products on CPU with our kernel: weights packed once, after they were loaded, for every row count.

Takes vLLM's place where it would hand a layer's product to oneDNN (`dispatch_cpu_unquantized_gemm`): the quantization
method of an unquantized layer is asked to process its weights, after a load and after each reload. Layers that the
kernel does not take (quantized, not bfloat16, odd sizes) stay with vLLM. The kernel itself is in `kernels/linear.cpp`;
`kernels/weights.h` says how weights lie in memory, where large ones take three quarters of their bytes, without loss.
"""

from collections.abc import Callable
from ctypes import CDLL
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from model_impl.cpu import PACKED, note
from model_impl.cpu.demand_zero import room
from model_impl.cpu.native import kernels, why_no_kernels

LARGE = 16 << 20
"""Bytes of a weight of embedding and head that is there only once."""


class PackedProduct:
    """`x @ weight.T + bias` in bfloat16 with float32 sums; a row's result does not depend on the other rows.

    Raises ValueError if the weight is not a bfloat16 matrix with an even number of columns.
    """

    def __init__(self, library: CDLL, weight: torch.Tensor) -> None:
        if not _fits(weight):
            raise ValueError(f"not a bfloat16 matrix with an even number of columns: {weight.dtype} {weight.shape}")
        weight = weight.detach().contiguous()
        self.outputs, self.inputs = weight.shape
        self.packed = room(library.packed_size(weight.data_ptr(), self.outputs, self.inputs))
        library.pack(weight.data_ptr(), self.outputs, self.inputs, self.packed.data_ptr())

    def __call__(self, x: torch.Tensor, _weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """(..., inputs) to (..., outputs); called as vLLM calls `layer.cpu_linear`, whose weight is not needed here."""
        if torch.compiler.is_compiling():
            product: torch.Tensor = torch.ops.twogear.packed_product(x, self.packed, bias, self.outputs)
            return product
        return _product(x, self.packed, bias, self.outputs)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) to (..., inputs): the weights of those outputs, which for an embedding are its vectors."""
        if torch.compiler.is_compiling():
            rows: torch.Tensor = torch.ops.twogear.packed_rows(ids, self.packed, self.inputs)
            return rows
        return _rows(ids, self.packed, self.inputs)


class PackedLinearMethod(UnquantizedLinearMethod):
    """vLLM's method for unquantized projections, with a packed product where the weight fits it."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Packs the loaded weight, which is then given up."""
        if not _pack(layer):
            super().process_weights_after_loading(layer)
            return
        layer.weight = _nothing()


class PackedHeadMethod(UnquantizedEmbeddingMethod):
    """The same for the output head, whose weight stays: it may be the embedding table too."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Packs a copy of the weight."""
        if not _pack(layer):
            super().process_weights_after_loading(layer)


class TableMethod(UnquantizedEmbeddingMethod):
    """The input embedding: rows are looked up, nothing is multiplied. vLLM would pack a copy that nobody uses."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """The weight stays as it was loaded."""


class SharedTableMethod(UnquantizedEmbeddingMethod):
    """The input embedding that a large `head` is tied to: packed once, for both, and looked up as it lies there."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._head = head

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Packs the loaded weight, which both then give up; nothing where that was done."""
        shared: Any = layer.weight
        if shared.numel() > 0 and _pack(layer):
            layer.weight = self._head.weight = _nothing()

    def embedding(self, layer: nn.Module, input_: torch.Tensor) -> torch.Tensor:
        """Ids to vectors."""
        product = _product_of(layer)
        if product is not None:
            return product.rows(input_)
        rows: torch.Tensor = super().embedding(layer, input_)
        return rows


class SharedHeadMethod(PackedHeadMethod):
    """The output head that is tied to a large input embedding, `table`."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self._table = table

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Nothing, where the table has packed the weight."""
        if _product_of(self._table) is None:
            super().process_weights_after_loading(layer)

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(rows, inputs) to (rows, outputs)."""
        product = _product_of(self._table)
        if product is not None:
            return product(x, x, bias)
        y: torch.Tensor = super().apply(layer, x, bias)
        return y


def use_packed_products(model: nn.Module, embedding: nn.Module, head: nn.Module, *, share: bool) -> None:
    """Gives all unquantized layers of a model that was just built the methods above; noted once weights are loaded.

    `share`: a large weight that embedding and head share is there once. Adapters need it as rows.
    """
    layer: Any
    for layer in model.modules():
        if type(getattr(layer, "quant_method", None)) is UnquantizedLinearMethod:
            layer.quant_method = PackedLinearMethod()
    shared = share and _are_tied(embedding, head)
    for layer, method in (
        (embedding, SharedTableMethod(head) if shared else TableMethod()),
        (head, SharedHeadMethod(embedding) if shared else PackedHeadMethod()),
    ):
        if type(getattr(layer, "quant_method", None)) is UnquantizedEmbeddingMethod:
            layer.quant_method = method


def _are_tied(embedding: nn.Module, head: nn.Module) -> bool:
    """Whether they have the same weight, and a large one: a small one is looked up sooner as rows."""
    weight, other = (getattr(layer, "weight", None) for layer in (embedding, head))
    return head is not embedding and other is weight and int(getattr(weight, "nbytes", 0)) >= LARGE


def _nothing() -> nn.Parameter:
    return nn.Parameter(torch.empty(0, dtype=torch.bfloat16), requires_grad=False)


def _product_of(layer: Any) -> PackedProduct | None:
    product = getattr(layer, "cpu_linear", None)
    return product if isinstance(product, PackedProduct) else None


def _pack(layer: Any) -> bool:
    """Whether the layer has a packed product of its weight now."""
    weight: torch.Tensor = layer.weight
    if not _fits(weight):
        note(PACKED, f"weights are {weight.dtype} {tuple(weight.shape)}")
        return False
    library = kernels()
    if library is None:
        note(PACKED, why_no_kernels())
        return False
    layer.cpu_linear = PackedProduct(library, weight)
    note(PACKED, None)
    return True


def _fits(weight: torch.Tensor) -> bool:
    return (
        not weight.is_meta
        and weight.dtype is torch.bfloat16
        and weight.ndim == 2
        and weight.numel() > 0
        and weight.shape[1] % 2 == 0
    )


def _rows(ids: torch.Tensor, packed: torch.Tensor, inputs: int) -> torch.Tensor:
    library = kernels()
    assert library is not None
    ids = ids.long().contiguous()
    y = torch.empty(*ids.shape, inputs, dtype=torch.bfloat16)
    library.packed_lookup(packed.data_ptr(), ids.data_ptr(), ids.numel(), y.data_ptr())
    return y


def _product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, outputs: int) -> torch.Tensor:
    library = kernels()
    assert library is not None
    return product_by(library.linear, x, packed, bias, outputs)


def product_by(
    linear: Callable[..., bool], x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, outputs: int
) -> torch.Tensor:
    """(..., inputs) times packed weights: (..., outputs). `linear`: the kernel for how they are packed.

    Raises ValueError where the kernel does not take these rows.
    """
    inputs = x.shape[-1]
    rows = x if x.ndim == 2 else x.reshape(-1, inputs)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    count = rows.shape[0]  # len() of a tensor is ten times as slow
    y = rows.new_empty(count, outputs)
    fits = x.dtype is torch.bfloat16 and linear(
        rows.data_ptr(),
        count,
        inputs,
        rows.stride(0),
        packed.data_ptr(),
        outputs,
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
    )
    if not fits:
        raise ValueError(f"{x.dtype} of {inputs} columns is not what these weights multiply")
    return y if x.ndim == 2 else y.view(*x.shape[:-1], outputs)


# Through torch's dispatcher only where a graph is compiled: it costs more than a call of ctypes.
@torch.library.custom_op("twogear::packed_product", mutates_args=())
def _packed_product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, outputs: int) -> torch.Tensor:
    return _product(x, packed, bias, outputs)


@_packed_product.register_fake
def _(x: torch.Tensor, _packed: torch.Tensor, _bias: torch.Tensor | None, outputs: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


@torch.library.custom_op("twogear::packed_rows", mutates_args=())
def _packed_rows(ids: torch.Tensor, packed: torch.Tensor, inputs: int) -> torch.Tensor:
    return _rows(ids, packed, inputs)


@_packed_rows.register_fake
def _(ids: torch.Tensor, _packed: torch.Tensor, inputs: int) -> torch.Tensor:
    return ids.new_empty(*ids.shape, inputs, dtype=torch.bfloat16)
