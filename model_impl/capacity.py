"""How many bytes a model's weights and a request's pages take: vLLM's own arithmetic, from the architecture alone.

Follows vLLM 0.32 (`v1/core/kv_cache_utils.py`, `v1/kv_cache_interface.py`): layers of one kind are dealt into groups
of equal size, a page holds the same tokens in every layer of its group, and all groups draw from one pool of pages.
Knows nothing of devices or of what else needs memory there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_impl.exaone4.architecture import GLOBAL, SLIDING, Architecture, ConfigError, LayerType
from model_impl.weights import BITS, BYTES_PER_WEIGHT, DEFAULT, TABLE_BITS, Format

BYTES_PER_VALUE = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1}
_SCALE_BITS = 16


@dataclass(frozen=True, slots=True)
class PageGroup:
    """Layers whose pages are allotted together. A page has room for the layers of the largest group."""

    kind: LayerType
    layers: int
    pages_per_request: int


@dataclass(frozen=True, slots=True)
class Cache:
    """A KV cache for requests of one length. `page_bytes`: one page of one group, with all its layers."""

    groups: tuple[PageGroup, ...]
    page_bytes: int

    @property
    def pages_per_request(self) -> int:
        """Pages that one request of the planned length holds at most, in all groups together."""
        return sum(group.pages_per_request for group in self.groups)

    @property
    def bytes_per_request(self) -> int:
        """Bytes of those pages."""
        return self.pages_per_request * self.page_bytes

    def concurrency(self, memory: int) -> float:
        """Requests per so many bytes, as vLLM prints it ("Maximum concurrency")."""
        return (memory // self.page_bytes) / self.pages_per_request

    def requests(self, memory: int) -> int:
        """Whole requests that fit into so many bytes; vLLM keeps one page back."""
        return max(0, memory // self.page_bytes - 1) // self.pages_per_request


@dataclass(frozen=True, slots=True)
class Load:
    """What the cache is planned for.

    `tokens`: length of a request, prompt and output. `page_tokens`: tokens in a page. `tokens_in_flight`: tokens that
    the engine computes at once (`--max-num-batched-tokens`; twice that with asynchronous scheduling), whose pages a
    sliding layer holds beside its window's. `bytes_per_value`: of a key's or value's element.
    """

    tokens: int
    page_tokens: int
    tokens_in_flight: int
    bytes_per_value: int


def windowed_cache(architecture: Architecture, load: Load) -> Cache:
    """The cache in which sliding layers give pages back behind their window."""
    counts = {GLOBAL: architecture.layer_types.count(GLOBAL), SLIDING: architecture.num_sliding_layers}
    present = {kind: count for kind, count in counts.items() if count}
    size = _group_size(list(present.values()))
    groups = tuple(
        PageGroup(kind, len(range(first, count, number)), _pages_per_request(architecture, load, kind))
        for kind, count in present.items()
        for number in [-(-count // size)]
        for first in range(number)
    )
    return Cache(groups, size * _layer_page_bytes(architecture, load))


def uniform_cache(architecture: Architecture, load: Load) -> Cache:
    """The cache in which every layer keeps every token (vLLM with `--disable-hybrid-kv-cache-manager`)."""
    layers = architecture.num_layers
    return Cache(
        (PageGroup(GLOBAL, layers, -(-load.tokens // load.page_tokens)),),
        layers * _layer_page_bytes(architecture, load),
    )


def weight_bytes(architecture: Architecture, config: Mapping[str, Any], dtype: str, weights: Format = DEFAULT) -> int:
    """Bytes of all weights: as `weights`, or as `dtype` and the projections as the `quantization_config` says.

    Raises:
        ConfigError: the quantization method is not one whose bits are known here.
    """
    if weights != DEFAULT:
        if config.get("quantization_config") is not None:
            raise ConfigError(f"--weights {weights} is for checkpoints in bfloat16 or float32; this one is quantized")
        table, linear = BYTES_PER_WEIGHT[TABLE_BITS[weights]], BYTES_PER_WEIGHT[BITS[weights]]
        return int(architecture.other_parameters * table + architecture.linear_parameters * linear)
    size = BYTES_PER_VALUE[dtype]
    quantization = config.get("quantization_config")
    bits = 8.0 * size if quantization is None else _quantized_bits(quantization)
    return architecture.other_parameters * size + int(architecture.linear_parameters * bits / 8)


def _group_size(layers_per_kind: list[int]) -> int:
    """Layers to a group: the rarer kind's, or the commoner's where padding the rarer costs little."""
    fewest, most = min(layers_per_kind), max(layers_per_kind)
    return most if most < 1.5 * fewest else fewest


def _pages_per_request(architecture: Architecture, load: Load, kind: LayerType) -> int:
    if kind == GLOBAL or architecture.sliding_window is None:
        return -(-load.tokens // load.page_tokens)
    held = min(architecture.sliding_window - 1 + load.tokens_in_flight, load.tokens)
    return -(-held // load.page_tokens) + 1  # a window need not begin where a page does


def _layer_page_bytes(architecture: Architecture, load: Load) -> int:
    values = 2 * architecture.num_kv_heads * architecture.head_dim  # of one token: a key and a value per head
    return load.page_tokens * values * load.bytes_per_value


def _quantized_bits(quantization: object) -> float:
    """Bits per weight of a quantized projection, the scales of its groups included."""
    if not isinstance(quantization, Mapping):
        raise ConfigError(f"quantization_config is {quantization!r}, which must be an object")
    method = quantization.get("quant_method")
    if method in ("gptq", "awq"):
        return _with_scales(quantization.get("bits"), quantization.get("group_size"))
    if method in ("fp8", "fbgemm_fp8"):
        return 8.0
    if method == "compressed-tensors":
        groups = quantization.get("config_groups")
        group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise ConfigError("quantization_config has no config_groups that say what a weight takes")
        return _with_scales(weights.get("num_bits"), weights.get("group_size"))
    raise ConfigError(f"quantization_config has quant_method {method!r}, whose size per weight is not known here")


def _with_scales(bits: object, group_size: object) -> float:
    if not isinstance(bits, int):
        raise ConfigError(f"quantization_config gives {bits!r} as the bits of a weight")
    return bits + (_SCALE_BITS / group_size if isinstance(group_size, int) and group_size > 0 else 0.0)
