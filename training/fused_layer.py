"""The model's body in training on CPU: a layer is one step of autograd, in bf16 products with our kernels in between.

Under autocast most of a small model's step is not products but what lies around them: casts, norms, rotations, and
autograd's own account of each. Here a layer's forward and backward pass are written out, over kernels/layer.cpp and
attention's. The residual stream stays float32, and goes from layer to layer with a copy in bf16, which products take.
Shapes: B rows, T tokens in each, N = B T, D width, H query heads, K KV heads, C head size, I the MLP's width.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from transformers import Exaone4ForCausalLM
from transformers.models.exaone4.modeling_exaone4 import Exaone4DecoderLayer

from training import attention, native

_LANES = 16  # what the kernels take at a time: half a head, or a part of a row


@dataclass(frozen=True)
class Shape:
    """What a layer's kernels have to know.

    `turns` (T, C): cosines, then sines; None where nothing is rotated. `chosen`: the tokens that are wanted behind
    attention, numbers from 0 to N - 1, M of them; None for all, and then M = N. `counts` (B, T): as in attention.py.
    """

    rows: int
    length: int
    heads: int
    kv_heads: int
    size: int
    window: int  # 0 for everything
    scale: float
    head_eps: float
    eps: float
    turns: torch.Tensor | None
    chosen: torch.Tensor | None
    counts: torch.Tensor | None

    @property
    def normed(self) -> int:
        """Columns of queries and keys, (H + K) C."""
        return (self.heads + self.kv_heads) * self.size

    def choose(self, x: torch.Tensor) -> torch.Tensor:
        """(N, *) -> (M, *)."""
        return x if self.chosen is None else x.index_select(0, self.chosen)

    def put_back(self, x: torch.Tensor) -> torch.Tensor:
        """(M, *) -> (N, *), zero elsewhere."""
        if self.chosen is None:
            return x
        return x.new_zeros(self.rows * self.length, x.shape[1]).index_copy_(0, self.chosen, x)

    def split(self, queries_keys: torch.Tensor, whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and keys out of the one matrix, values out of (N, (H + 2 K) C), as (B, T, heads, C)."""
        queries = queries_keys[:, : self.heads * self.size]
        keys = queries_keys[:, self.heads * self.size : self.normed]
        parts = (queries, keys, whole[:, self.normed :])
        first, second, third = (part.unflatten(1, (-1, self.size)).unflatten(0, (self.rows, -1)) for part in parts)
        return first, second, third


@dataclass(frozen=True)
class Weights:
    """A layer's weights: products' in bf16, with q|k|v and gate|up in one each, and gains in float32."""

    qkv: torch.Tensor  # ((H + 2 K) C, D)
    out: torch.Tensor  # (D, H C)
    gate_up: torch.Tensor  # (2 I, D)
    down: torch.Tensor  # (D, I)
    query_gain: torch.Tensor  # (C)
    key_gain: torch.Tensor  # (C)
    attention_gain: torch.Tensor  # (D)
    mlp_gain: torch.Tensor  # (D)

    @classmethod
    def of(cls, parameters: tuple[torch.Tensor, ...]) -> "Weights":
        """From a layer's parameters in the order of `_parameters`."""
        query, key, value, out, gate, up, down, *gains = parameters
        return cls(_stack(query, key, value), _stack(out), _stack(gate, up), _stack(down), *gains)


def _stack(*weights: torch.Tensor) -> torch.Tensor:
    """One above the other in bf16."""
    heights = [weight.shape[0] for weight in weights]
    whole = weights[0].new_empty(sum(heights), weights[0].shape[1], dtype=torch.bfloat16)
    for place, weight in zip(whole.split(heights), weights, strict=True):
        place.copy_(weight)
    return whole


@dataclass(frozen=True)
class Kept:
    """What the way back needs of the way there; bf16 but for `sums` and the inverse RMS of the two post-norms."""

    x: torch.Tensor  # (N, D), the layer's input
    qkv: torch.Tensor  # (N, (H + 2 K) C) as projected
    turned: torch.Tensor  # (N, (H + K) C), queries and keys normalised and rotated
    mixed: torch.Tensor  # (N, H C), attention's output
    sums: torch.Tensor  # attention's, as it keeps them
    attended: torch.Tensor  # (M, D), before the post-norm
    attended_inverse: torch.Tensor  # (M)
    middle: torch.Tensor  # (M, D), the MLP's input
    gate_up: torch.Tensor  # (M, 2 I)
    made: torch.Tensor  # (M, D), the MLP's output before the post-norm
    made_inverse: torch.Tensor  # (M)


def learnt_logits(
    model: Exaone4ForCausalLM, ids: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor | None
) -> torch.Tensor:
    """The float32 logits (M, V) behind the tokens that `mask` names; arguments as of `hidden_states`."""
    return model.lm_head(hidden_states(model, ids, mask, counts)).float()  # type: ignore[no-any-return]


def hidden_states(
    model: Exaone4ForCausalLM, ids: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """The last hidden states (M, D) of the M tokens that `mask` (B, T) names among `ids` (B, T), rows padded right.

    By this module where it can, else by transformers'. `counts` (B, T): how often a token counts in global layers.
    """
    body = model.model
    if not _is_for(model, ids):
        states: torch.Tensor = body(input_ids=ids, use_cache=False, counts=counts).last_hidden_state
        return states[mask]
    x = body.embed_tokens(ids).flatten(0, 1)
    x_short = x.to(torch.bfloat16)
    positions = torch.arange(ids.shape[1])[None]
    cosines, sines = body.rotary_emb(x, positions)  # (1, T, C), in which both halves of a head are the same
    half = cosines.shape[-1] // 2
    turns = torch.cat((cosines[0, :, :half], sines[0, :, :half]), dim=-1)
    last = len(body.layers) - 1
    for number, layer in enumerate(body.layers):
        shape = _shape(layer, ids, turns, mask.flatten().nonzero()[:, 0] if number == last else None, counts)
        keeps = not (layer.gradient_checkpointing and layer.training)
        x, x_short = _Layer.apply(x, x_short, shape, keeps, *_parameters(layer))  # type: ignore[no-untyped-call]
    normed: torch.Tensor = body.norm(x)
    return normed


def _is_for(model: Exaone4ForCausalLM, ids: torch.Tensor) -> bool:
    """Whether this is what the kernels are written for."""
    if ids.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or isinstance(model, FSDPModule):
        return False
    config = model.config
    return (
        torch.get_autocast_dtype("cpu") == torch.bfloat16
        and config._attn_implementation == attention.NAME
        and model.dtype == torch.float32
        and config.hidden_act == "silu"
        and not config.attention_dropout
        and config.head_dim % (2 * _LANES) == 0
        and config.hidden_size % _LANES == 0
        and config.intermediate_size % _LANES == 0
        and native.kernels() is not None
    )


def _shape(
    layer: Exaone4DecoderLayer,
    ids: torch.Tensor,
    turns: torch.Tensor,
    chosen: torch.Tensor | None,
    counts: torch.Tensor | None,
) -> Shape:
    inner = layer.self_attn
    return Shape(
        rows=ids.shape[0],
        length=ids.shape[1],
        heads=inner.num_attention_heads,
        kv_heads=inner.num_key_value_heads,
        size=inner.head_dim,
        window=(inner.sliding_window or 0) if inner.is_sliding else 0,
        scale=inner.scaling,
        head_eps=inner.q_norm.variance_epsilon,
        eps=layer.post_attention_layernorm.variance_epsilon,
        turns=turns if inner.sliding_window is None or inner.is_sliding else None,
        chosen=chosen,
        counts=None if inner.is_sliding else counts,
    )


def _parameters(layer: Exaone4DecoderLayer) -> tuple[torch.Tensor, ...]:
    inner, mlp = layer.self_attn, layer.mlp
    products = (inner.q_proj, inner.k_proj, inner.v_proj, inner.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    norms = (inner.q_norm, inner.k_norm, layer.post_attention_layernorm, layer.post_feedforward_layernorm)
    return tuple(module.weight for module in (*products, *norms))


class _Layer(torch.autograd.Function):
    """(N, D) float32 and the same in bf16 -> (M, D) of both behind the layer; the gradient comes in two parts as well.

    Where it does not `keep`, its input alone stays until the way back, which computes the rest again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, x_short: torch.Tensor, shape: Shape, keeps: bool, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.keeps = shape, keeps
        weights = Weights.of(parameters)
        y, y_short, kept = _forward(x, x_short, shape, weights)
        if keeps:
            ctx.save_for_backward(*vars(kept).values(), *vars(weights).values())
        else:
            ctx.save_for_backward(x, x_short, *parameters)
        return y, y_short

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor | None, dy_short: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if ctx.keeps:
            saved = ctx.saved_tensors
            count = len(Kept.__dataclass_fields__)
            kept, weights = Kept(*saved[:count]), Weights(*saved[count:])
        else:
            x, x_short, *parameters = ctx.saved_tensors
            weights = Weights.of(tuple(parameters))
            _, _, kept = _forward(x, x_short, ctx.shape, weights)
        if dy is None:
            dy = torch.zeros(kept.made.shape)
        dx, dx_short, gradients = _backward(dy.contiguous(), dy_short, ctx.shape, weights, kept)
        return (dx, dx_short, None, None, *gradients)


def _forward(
    x: torch.Tensor, x_short: torch.Tensor, shape: Shape, weights: Weights
) -> tuple[torch.Tensor, torch.Tensor, Kept]:
    qkv = x_short @ weights.qkv.t()
    turned = qkv.new_empty(qkv.shape[0], shape.normed)
    _call("norm_rope_forward", *_heads(qkv, shape, weights), turned)
    mixed, sums = attention.forward(*shape.split(turned, qkv), shape.scale, shape.window, shape.counts)
    mixed = mixed.view(qkv.shape[0], -1)
    attended = shape.choose(mixed) @ weights.out.t()
    middle, middle_short, attended_inverse = _add_norm(shape.choose(x), attended, weights.attention_gain, shape.eps)
    gate_up = middle_short @ weights.gate_up.t()
    active = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    _call("swiglu_forward", gate_up, *active.shape, active)
    made = active @ weights.down.t()
    y, y_short, made_inverse = _add_norm(middle, made, weights.mlp_gain, shape.eps)
    kept = Kept(
        x_short, qkv, turned, mixed, sums, attended, attended_inverse, middle_short, gate_up, made, made_inverse
    )
    return y, y_short, kept


def _backward(
    dy: torch.Tensor, dy_short: torch.Tensor | None, shape: Shape, weights: Weights, kept: Kept
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """The gradient of x and of its copy, and those of the parameters in the order of `_parameters`."""
    d, d_made, mlp_gain = _add_norm_back(dy, dy_short, kept.made, weights.mlp_gain, kept.made_inverse)
    d_active = d_made @ weights.down
    d_gate_up, active = torch.empty_like(kept.gate_up), torch.empty_like(d_active)
    _call("swiglu_backward", kept.gate_up, d_active, *active.shape, d_gate_up, active)
    down = (d_made.t() @ active).float()
    gate, up = (d_gate_up.t() @ kept.middle).float().chunk(2)
    d_middle = d_gate_up @ weights.gate_up
    d, d_attended, attention_gain = _add_norm_back(
        d, d_middle, kept.attended, weights.attention_gain, kept.attended_inverse
    )
    out = (d_attended.t() @ shape.choose(kept.mixed)).float()
    d_mixed = shape.put_back(d_attended @ weights.out)
    by_head = (shape.rows, shape.length, shape.heads, shape.size)
    d_qkv = torch.empty_like(kept.qkv)
    attention.backward(
        *shape.split(kept.turned, kept.qkv),
        kept.mixed.view(by_head),
        kept.sums,
        d_mixed.view(by_head),
        shape.scale,
        shape.window,
        shape.counts,
        into=shape.split(d_qkv, d_qkv),
    )
    head_gains = torch.empty(2, shape.size)
    _call("norm_rope_backward", *_heads(kept.qkv, shape, weights), d_qkv, head_gains)
    qkv = (d_qkv.t() @ kept.x).float()
    query, key, value = qkv.split([shape.heads * shape.size, *[shape.kv_heads * shape.size] * 2])
    gains = (*head_gains.unbind(), attention_gain, mlp_gain)
    return shape.put_back(d), d_qkv @ weights.qkv, (query, key, value, out, gate, up, down, *gains)


def _heads(qkv: torch.Tensor, shape: Shape, weights: Weights) -> tuple[Any, ...]:
    sizes = (*qkv.shape, shape.heads, shape.kv_heads, shape.size)
    return (qkv, *sizes, weights.query_gain, weights.key_gain, shape.head_eps, shape.turns, shape.length)


def _add_norm(
    residual: torch.Tensor, x: torch.Tensor, gain: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, D) residual + norm(x), the same in bf16, and x's inverse RMS (N)."""
    y, y_short, inverse = torch.empty_like(residual), torch.empty_like(x), residual.new_empty(x.shape[0])
    _call("add_norm_forward", residual, x, gain, eps, *x.shape, y, y_short, inverse)
    return y, y_short, inverse


def _add_norm_back(
    dy: torch.Tensor, dy_short: torch.Tensor | None, x: torch.Tensor, gain: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of the residual, of x and of the gain, from both parts of y's."""
    total, dx, d_gain = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(gain)
    _call("add_norm_backward", dy, dy_short, x, gain, inverse, *x.shape, total, dx, d_gain)
    return total, dx, d_gain


def _call(name: str, *arguments: torch.Tensor | float | None) -> None:
    """Calls a kernel; tensors are contiguous."""
    library = native.kernels()
    assert library is not None
    pointers = [
        ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, torch.Tensor) else argument
        for argument in arguments
    ]
    getattr(library, name)(*pointers)
