"""The flags of `twogear serve` for LoRA adapters, named as vLLM names them, and what they mean to the engine."""

import argparse
import json
from collections.abc import MutableMapping, Sequence
from itertools import zip_longest
from typing import Any

from engine.adapter_files import AdapterError, check_fits, read_adapter
from engine.defaults import Choice, named_options
from server.cli_errors import UsageError
from server.commands.arguments.numbers import positive
from server.settings import LoraModule, Settings

VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
ENABLE, MAX_LORAS, MAX_RANK = "--enable-lora", "--max-loras", "--max-lora-rank"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""
LEAST_RANK, MOST_IN_A_BATCH, MOST_AT_HAND = 16, 8, 32
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
        MAX_LORAS,
        type=positive,
        metavar="N",
        help="how many adapters may be in one batch; left out, as many as --lora-modules names, "
        f"at most {MOST_IN_A_BATCH}",
    )
    group.add_argument(
        MAX_RANK,
        type=int,
        choices=RANKS,
        help=f"the largest rank of an adapter; left out, that of --lora-modules, at least {LEAST_RANK}",
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


def engine_choices(args: argparse.Namespace, settings: Settings) -> list[Choice]:
    """What the engine needs for the adapters, beside what its own options say. Raises UsageError for an adapter that
    cannot be used with the model.
    """
    modules, options = settings.lora_modules, args.engine_options
    limits = {
        name: _limit(name, said, options)
        for name, said in ((MAX_LORAS, args.max_loras), (MAX_RANK, args.max_lora_rank))
    }
    named = named_options(options)
    if not (args.enable_lora or modules or ENABLE in named):
        if needless := next((name for name in limits if limits[name] is not None and name not in named), None):
            raise UsageError(f"{needless} means nothing without --enable-lora or --lora-modules")
        return []
    rank = max((_rank(settings.model, module) for module in modules), default=0)
    count = limits[MAX_LORAS] or min(max(len(modules), 1), MOST_IN_A_BATCH)
    choices = [
        Choice(ENABLE, True, "requests may name adapters"),
        Choice(MAX_LORAS, count, "so many adapters may be in one batch"),
        Choice(
            *("--max-cpu-loras", max(MOST_AT_HAND, len(modules), count)),
            "so many stay at hand; those used longest ago are read from disk again",
        ),
        Choice(MAX_RANK, _rank_limit(rank, limits[MAX_RANK]), "the largest rank of an adapter"),
    ]
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


def _rank_limit(rank: int, said: int | None) -> int:
    """The least of vLLM's that is enough for `rank`. Raises UsageError."""
    if said is not None:
        if rank > said:
            raise UsageError(f"--lora-modules: an adapter has rank {rank}; {MAX_RANK} is {said}")
        return said
    if rank > max(RANKS):
        raise UsageError(f"--lora-modules: an adapter has rank {rank}; the engine takes at most {max(RANKS)}")
    return next(one for one in RANKS if one >= max(rank, LEAST_RANK))


def _limit(name: str, said: int | None, options: Sequence[str]) -> int | None:
    """What the flag says, or the engine's option of the same name, whose last value counts. Raises UsageError."""
    found = None
    for option, following in zip_longest(options, options[1:], fillvalue=""):
        option_name, _, value = option.partition("=")
        text = value or following
        if option_name.replace("_", "-") == name and text.isdecimal():
            found = int(text)
    if None not in (said, found):
        raise UsageError(f"{name} is given twice, before and after --; once is enough")
    return found if said is None else said
