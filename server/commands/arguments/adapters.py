"""The flags of `twogear serve` for LoRA adapters, named as vLLM names them, and what they mean to the engine."""

import argparse
import json
from collections.abc import MutableMapping, Sequence
from itertools import zip_longest
from typing import Any

from engine.adapter_files import AdapterError, check_fits, read_adapter
from engine.defaults import Choice, named_options
from server.cli_errors import UsageError
from server.settings import LoraModule, Settings

VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
ENABLE = "--enable-lora"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""
MOST_IN_A_BATCH, MOST_AT_HAND = 8, 32
_FIELDS = {"name", "path", "base_model_name"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No adapters by default."""
    group = parser.add_argument_group("LoRA adapters", "each is listed as a model of its own, with an alias per mode")
    group.add_argument(ENABLE, action="store_true", help="let requests name adapters; --lora-modules does it too")
    group.add_argument(
        "--lora-modules",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PATH",
        help='adapters to serve from the start, each as NAME=PATH or as {"name": …, "path": …}',
    )
    group.add_argument(
        "--allow-runtime-lora-updating",
        dest="allow_lora_updates",
        action="store_true",
        help=f"let requests load and unload adapters, from any folder here; the environment's {VARIABLE} does it too",
    )


def of_arguments(args: argparse.Namespace, environment: MutableMapping[str, str]) -> dict[str, Any]:
    """The settings that these flags make. Raises UsageError."""
    modules = tuple(map(_module, args.lora_modules))
    allows = args.allow_lora_updates or environment.get(VARIABLE, "").strip().lower() in ("1", "true")
    return {"lora_modules": modules, "allow_lora_updates": allows}


def check(settings: Settings) -> None:
    """Raises UsageError for an adapter that has another's name, or is for another model."""
    own = (settings.model_name, settings.model)
    seen: set[str] = set()
    for name, _, base in settings.lora_modules:
        if name in seen or name in own:
            raise UsageError(f"--lora-modules: {name!r} is the name of another model; adapters need their own")
        if base and base not in own:
            raise UsageError(f"--lora-modules: {name} is for the model {base!r}; this one is {own[0]!r}")
        seen.add(name)


def engine_choices(model: str, modules: Sequence[LoraModule], *, enabled: bool, options: Sequence[str]) -> list[Choice]:
    """What the engine needs for these adapters and its `options` do not say yet. Raises UsageError for one that cannot
    be used with the model.
    """
    named = named_options(options)
    if not (enabled or modules or ENABLE in named):
        return []
    rank = max((_rank(model, module) for module in modules), default=0)
    most = _number(options, "--max-lora-rank")
    if most is not None and rank > most:
        raise UsageError(f"--lora-modules: an adapter has rank {rank}; --max-lora-rank is {most}")
    count = min(max(len(modules), 1), MOST_IN_A_BATCH)
    at_hand = max(MOST_AT_HAND, len(modules), _number(options, "--max-loras") or count)
    choices = [
        Choice(ENABLE, True, "requests may name adapters"),
        Choice("--max-loras", count, f"so many adapters may be in one batch; at most {MOST_IN_A_BATCH} by default"),
        Choice("--max-cpu-loras", at_hand, "so many stay at hand; those used longest ago are read from disk again"),
    ]
    if rank:
        fitting = next((one for one in RANKS if one >= rank), None)
        if fitting is None:
            raise UsageError(f"--lora-modules: an adapter has rank {rank}; the engine takes at most {max(RANKS)}")
        choices.append(Choice("--max-lora-rank", max(fitting, 16), f"the largest of the adapters is {rank}"))
    return [choice for choice in choices if choice.name not in named]


def as_options(choices: Sequence[Choice]) -> list[str]:
    """On the engine's command line."""
    return [choice.name if choice.value is True else f"{choice.name}={choice.value}" for choice in choices]


def _module(text: str) -> LoraModule:
    """As vLLM reads it: a comma, too, makes it JSON."""
    if "=" in text and not text.lstrip().startswith("{"):
        name, _, path = text.partition("=")
        fields: object = {"name": name, "path": path}
    else:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = None
    if not isinstance(fields, dict) or not {"name", "path"} <= fields.keys() <= _FIELDS:
        raise UsageError(f'--lora-modules: {text[:80]!r} is neither NAME=PATH nor {{"name": "NAME", "path": "PATH"}}')
    name, path, base = fields["name"], fields["path"], fields.get("base_model_name") or ""
    if not (isinstance(name, str) and name and isinstance(path, str) and path and isinstance(base, str)):
        raise UsageError(f"--lora-modules: {text[:80]!r} needs a name and a path, both texts")
    return LoraModule(name, path, base)


def _rank(model: str, module: LoraModule) -> int:
    try:
        files = read_adapter(module.path)
        if files is None:
            return 0
        check_fits(files, model)
    except AdapterError as error:
        raise UsageError(f"--lora-modules: {module.name}: {error}") from error
    return files.rank


def _number(options: Sequence[str], wanted: str) -> int | None:
    """The value of an option of the engine's; the last one counts."""
    found = None
    for option, following in zip_longest(options, options[1:], fillvalue=""):
        name, _, value = option.partition("=")
        text = value or following
        if name.replace("_", "-") == wanted and text.isdecimal():
            found = int(text)
    return found
