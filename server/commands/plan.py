"""`twogear plan`: from config.json alone, what the weights and the pages of long requests need.

Only reads, adds up and prints; the arithmetic is `model_impl.capacity`'s. Loads neither torch nor vLLM.
"""

import argparse
import json
import logging
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from model_impl import gguf
from model_impl.capacity import BYTES_PER_VALUE, Cache, Load, uniform_cache, weight_bytes, windowed_cache
from model_impl.exaone4.architecture import GLOBAL, SLIDING, Architecture, ConfigError, LayerType
from model_impl.weights import DEFAULT, FORMATS, VARIABLE, weights_format
from server.cli_errors import UsageError
from server.commands.arguments.gguf import folder_of, held_bytes
from server.commands.fleet import sizing
from server.commands.fleet.sizing import EngineTimes, Sizing, Workload

HELP = "show what a model's weights and long requests need, from its config.json alone"

_HEADROOM = 1.25
"""A mode's limit over what ran at once in the simulation: what comes beyond it waits, and keeps the others' times."""
LEAST_BYTES = 1 << 20
"""Of a size without a unit: less is meant in another one."""
_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("IB", 1024), ("", 1024))
}
_NAMES: dict[LayerType, str] = {SLIDING: "sliding", GLOBAL: "global"}
_DTYPES = ("bfloat16", "float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a local folder, a GGUF file, a config.json, or a hub id")
    parser.add_argument(
        "--memory", type=_bytes, required=True, metavar="SIZE", help="for weights and pages together, such as 80GiB"
    )
    parser.add_argument("--context", type=_positive, metavar="TOKENS", help="length of a request; default: the model's")
    parser.add_argument("--dtype", choices=_DTYPES, help="of the weights; default: the config's")
    parser.add_argument(
        "--weights",
        choices=FORMATS,
        help=f"as twogear serve has it, also from {VARIABLE}; int8 and int4 are for CPUs",
    )
    parser.add_argument("--kv-dtype", choices=(*_DTYPES, "fp8"), help="of the pages; default: as the weights")
    parser.add_argument("--page-size", type=_positive, default=16, metavar="TOKENS", help="tokens in a page")
    parser.add_argument(
        "--tokens-in-flight",
        type=_positive,
        default=2048,
        metavar="TOKENS",
        help="computed at once: the engine's --max-num-batched-tokens, times 2 with asynchronous scheduling",
    )
    parser.add_argument(
        "--fleet",
        type=Path,
        metavar="FILE",
        help="a TOML file: each mode's requests and goals, and measured step times; says how many replicas that needs, "
        "by simulation. --memory is of one device then",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@dataclass(frozen=True)
class Plan:
    """What is printed. Sizes in bytes; `memory` is for weights and pages together."""

    architecture: Architecture
    dtype: str
    memory: int
    weights: int
    load: Load

    @property
    def for_pages(self) -> int:
        """What the weights leave."""
        return max(0, self.memory - self.weights)

    @property
    def windowed(self) -> Cache:
        """The cache as the engine lays it out."""
        return windowed_cache(self.architecture, self.load)

    @property
    def uniform(self) -> Cache:
        """The cache of an engine that keeps every token in every layer."""
        return uniform_cache(self.architecture, self.load)


def run(args: argparse.Namespace) -> int:
    """Prints the plan. Raises UsageError."""
    config = read_config(args.model)
    try:
        plan = _plan(config, args)
    except ConfigError as error:
        raise UsageError(f"{args.model}: {error}") from error
    if args.fleet is not None:
        found = fleet(plan, sizing.read(args.fleet))
        print(json.dumps(msgspec.to_builtins(found)) if args.json else fleet_text(found))
        return 0
    print(json.dumps(as_json(plan)) if args.json else as_text(plan))
    return 0


def _plan(config: dict[str, Any], args: argparse.Namespace) -> Plan:
    architecture = Architecture.from_config(config)
    try:
        held = args.weights or weights_format()
    except ValueError as error:
        raise UsageError(str(error)) from error
    dtype = args.dtype or (_config_dtype(config) if held == DEFAULT else "bfloat16")
    context = args.context or architecture.max_positions
    if context > architecture.max_positions:
        raise UsageError(f"--context {context} is more than the model's {architecture.max_positions} positions")
    load = Load(context, args.page_size, args.tokens_in_flight, BYTES_PER_VALUE[args.kv_dtype or dtype])
    if gguf.is_gguf(args.model) and held == DEFAULT:
        return Plan(architecture, "gguf", args.memory, held_bytes(args.model), load)
    weights = weight_bytes(architecture, config, dtype, held)
    return Plan(architecture, dtype if held == DEFAULT else held, args.memory, weights, load)


def fleet(plan: Plan, workload: Workload) -> Sizing:
    """The fewest devices that meet the workload's goals, over the ways to divide the model that were measured.

    Raises UsageError, with the last way's reason, where none does.
    """
    found, refused = [], ""
    for times in workload.engines:
        try:
            found.append(_sized(plan, workload, times))
        except UsageError as error:
            refused = str(error)
    if not found:
        raise UsageError(refused)
    return min(found, key=lambda one: one.devices)


def _sized(plan: Plan, workload: Workload, times: EngineTimes) -> Sizing:
    """With as many places as have pages for a conversation's longest request. Raises UsageError."""
    architecture, devices = plan.architecture, times.tensor_parallel
    if architecture.num_heads % devices:
        raise UsageError(f"tensor_parallel = {devices} does not divide the model's {architecture.num_heads} heads")
    whole = min(1.0, architecture.num_kv_heads / devices)  # beyond, devices hold copies of the same keys
    pages = int(max(0, plan.memory * devices - plan.weights) * whole)
    tokens = min(workload.typical_tokens, architecture.max_positions)
    fit = windowed_cache(architecture, replace(plan.load, tokens=tokens)).requests(pages)
    if not fit:
        raise UsageError(
            f"{devices} devices of {_size(plan.memory)} have no pages for a request of {tokens} tokens beside weights "
            f"of {_size(plan.weights)}; measure with a larger tensor_parallel"
        )
    return sizing.fewest(workload, times, min(times.places, fit), fit * tokens)


def fleet_text(found: Sizing) -> str:
    """A fleet's size for people; simulated, as it says."""
    return "\n".join(
        [
            f"{found.replicas} replicas of {found.engine.tensor_parallel} devices (tensor parallel): {found.devices}",
            f"places in each {found.places}; by simulation:",
            f"  {'mode':<16}{'first token p95':>16}{'whole p95':>12}{'at once':>9}   limits.running",
            *(
                f"  {name:<16}{one.first_token_p95:>14.2f} s{one.whole_p95:>10.1f} s{one.running:>9}   "
                f"{math.ceil(one.running * _HEADROOM)}"
                for name, one in found.modes.items()
            ),
        ]
    )


def read_config(model: str) -> dict[str, Any]:
    """The content of a model's config.json; of a hub id nothing else is fetched.

    Raises:
        UsageError: there is none, or it is not a JSON object.
    """
    path = Path(model).expanduser()
    if gguf.is_gguf(model):
        path = folder_of(model) / "config.json"
    elif path.is_dir():
        path /= "config.json"
    elif not path.is_file():
        path = _fetch_config(model)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{model} has no config.json; name the folder of a model") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"cannot read {path}: it is nested too deeply") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} is not a JSON object")
    return config


def _fetch_config(model: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise UsageError(f"{model} is neither a folder, nor a config.json, nor a hub id (owner/name)")
    # Slow to import, and needed here alone.
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of each retry; the outcome is told below
    try:
        return Path(hf_hub_download(model, "config.json"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"there is no local folder {model}, and the hub gave no config.json: {reason}") from error


def _config_dtype(config: dict[str, Any]) -> str:
    """Of the checkpoint; older configs call the field torch_dtype. vLLM serves 32-bit checkpoints as they are."""
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}")
    return str(dtype)


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs; sizes in bytes."""
    return {
        "parameters": plan.architecture.parameters,
        "weight_bytes": plan.weights,
        "page_pool_bytes": plan.for_pages,
        "context": plan.load.tokens,
        "page_tokens": plan.load.page_tokens,
        "tokens_in_flight": plan.load.tokens_in_flight,
        "windowed": _cache_as_json(plan.windowed, plan.for_pages),
        "uniform": _cache_as_json(plan.uniform, plan.for_pages),
    }


def _cache_as_json(cache: Cache, memory: int) -> dict[str, Any]:
    return {
        "groups": [
            {
                "kind": _NAMES[group.kind],
                "layers": group.layers,
                "pages_per_request": group.pages_per_request,
                "bytes_per_request": group.pages_per_request * cache.page_bytes,
            }
            for group in cache.groups
        ],
        "page_bytes": cache.page_bytes,
        "bytes_per_request": cache.bytes_per_request,
        "requests": cache.requests(memory),
        "concurrency": cache.concurrency(memory),
    }


def as_text(plan: Plan) -> str:
    """The plan for people."""
    architecture, load, windowed, uniform = plan.architecture, plan.load, plan.windowed, plan.uniform
    all_layers, sliding = architecture.num_layers, architecture.num_sliding_layers
    groups = [(_NAMES[group.kind], group.layers, group.pages_per_request) for group in windowed.groups]
    rows = [(*group, group[2] * windowed.page_bytes) for group in groups]
    rows.append(("together", all_layers, windowed.pages_per_request, windowed.bytes_per_request))
    rows.append(("without windows", all_layers, uniform.pages_per_request, uniform.bytes_per_request))
    return "\n".join(
        [
            f"{_parameters(architecture.parameters)} parameters, {all_layers - sliding} global layers"
            + (f", {sliding} that see {architecture.sliding_window} tokens" if sliding else ""),
            f"memory   {_size(plan.memory):>12}",
            f"weights  {_size(plan.weights):>12}   {plan.dtype}",
            f"pages    {_size(plan.for_pages):>12}" + ("" if plan.for_pages else "   the weights alone are too much"),
            "",
            f"one request of {load.tokens} tokens, {load.page_tokens} in a page, {load.tokens_in_flight} in flight:",
            f"  {'page group':<16}{'layers':>7}{'pages':>8}{'bytes':>13}",
            *(f"  {name:<16}{layers:>7}{pages:>8}{_size(size):>13}" for name, layers, pages, size in rows),
            "",
            f"requests of {load.tokens} tokens that fit at once:",
            *(
                f"  {name:<16}{cache.requests(plan.for_pages):>7}   ({cache.concurrency(plan.for_pages):.2f})"
                for name, cache in (("with windows", windowed), ("without windows", uniform))
            ),
            f"  {'ratio':<16}{uniform.bytes_per_request / windowed.bytes_per_request:>10.2f}",
        ]
    )


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 10**9 else f"{count / 1e6:.2f} million"


def _size(count: int) -> str:
    """A byte count in the binary unit in which it has few digits."""
    for unit, power in ("GiB", 30), ("MiB", 20):
        if count >= 1 << power:
            return f"{count / (1 << power):.2f} {unit}"
    return f"{count / 1024:.2f} KiB"


def _bytes(text: str) -> int:
    """A size such as 80GiB, 24GB, 512M (binary, as is usual for memory) or a plain number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 80GiB")
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if not match[2] and size < LEAST_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} without a unit is so many bytes; write it like {match[1]}GiB")
    return size


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
