"""A checkpoint's weights in a wider model that computes the same: more channels, heads, or units of the MLP.

After Net2Net (Chen et al. 2016, arXiv:1511.05641), by zeros instead of copies: nothing writes to a new channel, and
nothing reads what new heads and units make; what they read has weights, so that they learn from the first step.
"""

import math
from collections.abc import Mapping

import torch
from transformers import Exaone4Config

_READ_CHANNELS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_WRITE_CHANNELS = ("o_proj", "down_proj")
_CHANNELS_LAST = ("embed_tokens", "lm_head")
_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm", "norm")


def widen(
    source: Mapping[str, torch.Tensor],
    narrow: Exaone4Config,
    fresh: Mapping[str, torch.Tensor],
    wide: Exaone4Config,
) -> dict[str, torch.Tensor]:
    """The state dict of `wide` that computes what `source` does; new weights are `fresh`, at its scale, or zero.

    A norm's gains shrink as the mean square of its input does, which the zeros are part of. Tensors that are no larger
    there are as in the source. Raises ValueError for fewer KV heads, or fewer queries for each of them.
    """
    channels = torch.arange(narrow.hidden_size)
    heads = _places(narrow, wide)
    shrunk = math.sqrt(narrow.hidden_size / wide.hidden_size)
    result = {}
    for name, old in source.items():
        kind = name.split(".")[-2]
        if name not in fresh or not _grows(old, fresh[name]):
            result[name] = old
        elif kind in _NORMS:
            result[name] = torch.cat([old, old.mean().expand(wide.hidden_size - narrow.hidden_size)]) * shrunk
        elif kind in _CHANNELS_LAST:
            result[name] = _within(torch.zeros_like(fresh[name]), old, torch.arange(len(old)), channels)
        elif kind in _WRITE_CHANNELS:
            columns = heads if kind == "o_proj" else torch.arange(old.shape[1])
            result[name] = _within(torch.zeros_like(fresh[name]), old, channels, columns)
        elif kind in _READ_CHANNELS:
            rows = heads if kind == "q_proj" else torch.arange(len(old))
            result[name] = _within(fresh[name] * (old.std() / fresh[name].std()), old, rows, channels)
        else:
            result[name] = old
    return result


def _places(narrow: Exaone4Config, wide: Exaone4Config) -> torch.Tensor:
    """Where the queries' channels go: the first heads of each KV head's group stay the first of its wider group."""
    size = narrow.head_dim
    old, new = (config.num_attention_heads // config.num_key_value_heads for config in (narrow, wide))
    groups = range(narrow.num_key_value_heads)
    if new < old or wide.num_key_value_heads < len(groups):
        raise ValueError(
            f"{wide.num_key_value_heads} KV heads with {new} queries each are too few for a checkpoint that has "
            f"{len(groups)} with {old}"
        )
    return torch.cat([torch.arange(old * size) + group * new * size for group in groups])


def _grows(old: torch.Tensor, new: torch.Tensor) -> bool:
    pairs = list(zip(old.shape, new.shape, strict=True))
    return all(before <= after for before, after in pairs) and old.shape != new.shape


def _within(target: torch.Tensor, old: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """`target`, changed in place, with `old` where those rows and columns cross."""
    target[rows[:, None], columns] = old
    return target
