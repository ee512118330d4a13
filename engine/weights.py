"""How a checkpoint's weights are held: what config.json says of it, and whether they can be held as `--weights` asks.

Imports neither torch nor vLLM. What a machine cannot compute, vLLM finds out; `advice` is what is said beside it then.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from engine.checkpoint import ModelError, read_config
from engine.defaults import GIB
from model_impl import MODELS
from model_impl.capacity import weight_bytes
from model_impl.exaone4.architecture import Architecture, ConfigError
from model_impl.gguf import LINK, METHOD, stands_for_a_file
from model_impl.weights import BITS, DEFAULT, FORMATS, GGUF, Format

_PLACES = ("quantization_config", "compression_config")
"""Fields of config.json that say how weights are quantized, the second an older name of compressed-tensors'."""
BESIDE_WEIGHTS = 2 * GIB
"""What an engine takes beside them at least: its own code, and the smallest KV cache of a default start."""
LARGE = GIB
"""Bytes in bfloat16 from which on a stream waits for weights to be read (measured with 2.5 GiB: docs/weights.md)."""
VECTORS = "avx512_vnni"
_WITHOUT_BITS = {"--dtype", "--quantization", "-q", "--load-format", "--enable-lora"}
"""Engine options beside which bfloat16 stays the default: numbers that 8 bits are not multiplied with, or not tried."""
_MODELOPT = "hf_quant_config.json"
"""Where NVIDIA's ModelOpt says it, beside config.json."""


class Chosen(NamedTuple):
    """A format of `--weights`, and why, in words."""

    weights: Format
    reason: str


def held_weights(folder: Path, asked: str, options: Sequence[str] = ()) -> str:
    """The format of a checkpoint's weights for clients: `asked`, or what the checkpoint or an engine option says.

    Such as `gptq-int4`, `compressed-tensors-int8`, `fp8`, or `bf16` for numbers that are not quantized.
    Raises ModelError where config.json cannot be read.
    """
    if asked != DEFAULT:
        return asked
    found = quantization(folder)
    if found is None:
        return _option(options) or ("modelopt" if (folder / _MODELOPT).is_file() else DEFAULT)
    method = _method(found)
    if method == METHOD:
        return GGUF
    bits = _bits(found)
    return f"{method}-{bits}" if bits else method


def advice(folder: Path) -> str:
    """Of a quantized checkpoint that a CPU cannot serve: what its quantization is, and what would work. Else nothing.

    Raises ModelError.
    """
    found = quantization(folder)
    if found is None or _method(found) == METHOD:
        return ""
    return (
        f" (quantization_config.quant_method is {_method(found)}; on a CPU, GPTQ in 4 and 8 bits and AWQ in 4 work in "
        "groups of 32, 64 or 128, compressed-tensors' pack-quantized and int-quantized, GGUF, bfloat16 and float32)"
    )


def check_weights(folder: Path, model: str, asked: str) -> None:
    """Raises ModelError where a checkpoint is none whose weights can be held so; `model`: as it was named."""
    if asked in (DEFAULT, GGUF):
        return
    architectures = read_config(folder)["architectures"]
    flag, otherwise = f"--weights {asked}", f"leave it out, or use --weights {DEFAULT}"
    if not set(architectures) & set(MODELS):
        raise ModelError(f"{flag} is for {', '.join(MODELS)}; {model} is a {', '.join(architectures)}: {otherwise}")
    if (found := quantization(folder)) is not None:
        raise ModelError(
            f"{flag} is for checkpoints in bfloat16 or float32, and {model} is quantized "
            f"(quantization_config.quant_method {_method(found)}): {otherwise}"
        )


def check_room(folder: Path, model: str, asked: str, available: int) -> None:
    """Raises ModelError where so many bytes of memory are too few to quantize a checkpoint, or for a GGUF file.

    Packed weights are there then, and one matrix as the checkpoint has it: the largest is the embedding. Called once
    `check_weights` has let it pass.
    """
    if stands_for_a_file(str(folder)):
        _check_room_for_a_file(folder, available)
    if asked not in BITS:
        return
    config = read_config(folder)
    try:
        architecture = Architecture.from_config(config)
        needed: dict[str, int] = {each: weight_bytes(architecture, config, "bfloat16", each) for each in BITS}
    except ConfigError:
        return  # vLLM says more about it
    largest = 2 * architecture.vocab_size * architecture.hidden_size
    if needed[asked] + largest > available:
        sizes = ", ".join(f"{(size + largest) / GIB:.1f} GiB with {each}" for each, size in needed.items())
        raise ModelError(
            f"--weights {asked}: {available / GIB:.1f} GiB of memory are free, too few to quantize {model}, which "
            f"takes {sizes}; free some, or take a smaller model"
        )


def _check_room_for_a_file(folder: Path, available: int) -> None:
    from model_impl.gguf.folder import held_bytes, loading_bytes  # noqa: PLC0415 - numpy, which other models do without

    file, needed, held = (folder / LINK).resolve(), loading_bytes(folder), held_bytes(folder)
    if needed > available:
        raise ModelError(
            f"{_gib(available)} of memory are free, too few for {file}, which takes {_gib(needed)} until all of it is "
            f"read and {_gib(held)} afterwards; free some, or take a smaller model"
        )


def choose(sizes: Mapping[Format, int], options: Sequence[str], flags: Collection[str]) -> Chosen:
    """The default format on a CPU, for weights that take so many bytes in each.

    It depends on model, CPU and engine options alone, so that the same start has the same answers however much memory
    is free. `flags`: what the CPU has, as /proc/cpuinfo calls it.
    """
    size = sizes[DEFAULT]
    if size < LARGE:
        return Chosen(DEFAULT, f"a model of {_gib(size)} is read fast enough")
    if VECTORS not in flags:
        return Chosen(DEFAULT, f"this CPU has no {VECTORS}, without which products of fewer bits take longer")
    if fixed := sorted({option.partition("=")[0] for option in options} & _WITHOUT_BITS):
        return Chosen(DEFAULT, f"fewer bits are not chosen beside {fixed[0]}")
    return Chosen("int8", f"one stream waits for {_gib(sizes['int8'])} to be read for each token, not for {_gib(size)}")


def default_weights(folder: Path, options: Sequence[str], flags: Collection[str]) -> Chosen:
    """The format of a checkpoint's weights on a CPU where nobody asked for one. Raises ModelError."""
    sizes = sizes_by_format(folder)
    return Chosen(DEFAULT, "the only one") if sizes is None else choose(sizes, options, flags)


def sizes_by_format(folder: Path) -> dict[Format, int] | None:
    """Bytes of a checkpoint's weights in each format of `--weights`; None where it cannot be held in all of them.

    Raises ModelError.
    """
    config = read_config(folder)
    if not set(config["architectures"]) & set(MODELS) or quantization(folder) is not None:
        return None
    try:
        architecture = Architecture.from_config(config)
        return {each: weight_bytes(architecture, config, "bfloat16", each) for each in FORMATS}
    except ConfigError:
        return None  # vLLM says more about it


def start_line(folder: Path, held: str, why: str, available: int) -> str:
    """What is said at a start on a CPU: how the weights are held, why, and what would fit where that does not.

    `why`: a reason of `choose`; empty where flag or environment say the format. `available`: bytes of memory. Raises
    ModelError.
    """
    sizes = sizes_by_format(folder)
    if sizes is None or held not in FORMATS:
        return f"Weights: {held}, as checkpoint and engine options say."
    size = next(sizes[each] for each in FORMATS if each == held)
    if not why:
        return f"Weights: {held} ({_gib(size)}), as you have asked."
    said = f"Weights: {held} ({_gib(size)}), the default: {why}."
    if size + BESIDE_WEIGHTS <= available:
        return said if held == DEFAULT else f"{said} --weights {DEFAULT} for those of the checkpoint."
    free = f"{available / GIB:.1f} GiB of memory are free"
    fits = [f"--weights {each} ({_gib(sizes[each])})" for each in BITS if sizes[each] + BESIDE_WEIGHTS <= available]
    return f"{said} Only {free}: {fits[0]} fits better." if fits else f"{said} Only {free}, too few for any format."


def quantization(folder: Path) -> dict[str, Any] | None:
    """What config.json says of quantization; None if nothing. Raises ModelError."""
    config = read_config(folder)
    text = config.get("text_config")
    for fields in (config, text if isinstance(text, dict) else {}):
        for place in _PLACES:
            if (found := fields.get(place)) is not None:
                if not isinstance(found, dict):
                    raise ModelError(f"{folder / 'config.json'}: {place} must be an object")
                return dict(found)
    return None


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.0f} MiB"


def _method(found: Mapping[str, Any]) -> str:
    method = found.get("quant_method")
    return method if isinstance(method, str) and method and method.isprintable() else "quantized"


def _option(options: Sequence[str]) -> str | None:
    """The method that an engine option names (`--quantization fp8`, `-q fp8`)."""
    for option, following in zip_longest(options, options[1:], fillvalue=""):
        name, _, value = option.partition("=")
        if name in ("--quantization", "-q"):
            return value or following or None
    return None


def _bits(found: Mapping[str, Any]) -> str:
    """In how many bits of which kind (int4, float8), where that is one for all layers."""
    if isinstance(bits := found.get("bits", found.get("w_bit")), int):
        return f"int{bits}"
    groups = found.get("config_groups")
    weights = [
        group["weights"]
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict)
    ]
    kinds = {json.dumps([one.get("type", "int"), one.get("num_bits")]) for one in weights}
    if len(kinds) != 1:
        return ""
    kind, bits = weights[0].get("type", "int"), weights[0].get("num_bits")
    return f"{kind}{bits}" if isinstance(kind, str) and isinstance(bits, int) and kind.isalpha() else ""
