"""Looks at the files of a LoRA adapter before vLLM does: its rank, and whether it was made for a model of this shape.

Plain Python over headers, so that the front end can ask too. vLLM copies a matrix that is too small into a part of its
place and says nothing; whether the matrices fit is found out here.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OTHER_WEIGHTS = ("adapter_model.bin", "adapter_model.pt")
MOST_HEADER_BYTES = 100 << 20  # the format's own limit
_MODULE = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.\w+)?\.weight")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MAY_BE_ABSENT = ("lm_head", "experts")
"""A tied head, and experts that a checkpoint keeps as one, have no weight under the adapter's name."""

Shapes = dict[str, tuple[int, ...]]
"""Of tensors by name."""


class AdapterError(ValueError):
    """The adapter cannot be used; the message is one line that says why."""


class AdapterFiles(NamedTuple):
    """What an adapter's files say. `rank`: its largest; `shapes` is empty where its weights are not safetensors;
    `base`: the model that it was made from, empty where that is not said.
    """

    rank: int
    shapes: Shapes
    base: str


def read_adapter(path: str) -> AdapterFiles | None:
    """The adapter in the folder `path`, None for a hub id, which vLLM fetches; raises AdapterError."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if not folder.exists() and _HUB_ID.fullmatch(path):
            return None
        raise AdapterError(f"there is no folder {path}; name one with {CONFIG} and {WEIGHTS}")
    config = _config(folder)
    weights = folder / WEIGHTS
    if not any((folder / name).is_file() for name in (WEIGHTS, *OTHER_WEIGHTS)):
        raise AdapterError(f"{path} holds no {WEIGHTS}; is the adapter complete?")
    shapes = header(weights) if weights.is_file() else {}
    rank = max([_rank(config, folder), *_ranks(shapes)])
    return AdapterFiles(rank, shapes, str(config.get("base_model_name_or_path") or ""))


def check_fits(adapter: AdapterFiles, model: str) -> None:
    """Raises AdapterError where the adapter was made for a model of another shape than the checkpoint `model`.

    A model that is no folder of safetensors is not looked at, nor are weights that have no plain matrix there.
    """
    shapes = _model_shapes(Path(model).expanduser())
    parts = list(_parts(adapter.shapes))
    if not shapes or not parts:
        return
    known = [(module, part, shape) for module, part, shape in parts if _has(module, shapes)]
    if not known:
        raise AdapterError(f"it was made for another model: this one has no {parts[0][0]}")
    for module, part, shape in parts:
        if not _has(module, shapes) and not any(name in module for name in _MAY_BE_ABSENT):
            raise AdapterError(f"it was made for another model: this one has no {module}")
        weight = shapes.get(f"{module}.weight", ())
        if len(weight) != 2 or len(shape) != 2:
            continue
        mine, its = (weight[1], shape[1]) if part == "A" else (weight[0], shape[0])
        if mine != its:
            side = "inputs" if part == "A" else "outputs"
            raise AdapterError(f"it was made for another model: {module} has {mine} {side} here, and {its} there")


def header(file: Path) -> Shapes:
    """The tensors of a safetensors file; raises AdapterError."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            told: dict[str, Any] = json.loads(opened.read(min(length, MOST_HEADER_BYTES)))
            return {name: tuple(tensor["shape"]) for name, tensor in told.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{file} is no safetensors file: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} holds no {CONFIG}; it is no adapter in PEFT's format")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} must be a JSON object")
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise AdapterError(f"{path}: peft_type must be LORA, not {kind!r}")
    return config


def _rank(config: dict[str, Any], folder: Path) -> int:
    patterns = config.get("rank_pattern") or {}
    ranks: list[Any] = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else [patterns])]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise AdapterError(f"{folder / CONFIG}: r and rank_pattern must be whole numbers above 0")
    return int(max(ranks))


def _ranks(shapes: Shapes) -> Iterator[int]:
    """Of each module's matrices, whatever the config says; raises AdapterError where the two of a module differ."""
    found: dict[str, int] = {}
    for module, part, shape in _parts(shapes):
        if len(shape) == 2 and "experts" not in module:  # theirs may be all experts' in one matrix
            rank = shape[0] if part == "A" else shape[1]
            if found.setdefault(module, rank) != rank:
                raise AdapterError(
                    f"{module} is of rank {found[module]} in one of its matrices and of rank {rank} in the other"
                )
            yield rank


def _parts(shapes: Shapes) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Of each matrix: the module that it is for, A or B, and its shape."""
    for name, shape in shapes.items():
        if (match := _MODULE.fullmatch(name)) is not None:
            yield match["module"], match["part"], shape


def _has(module: str, shapes: Shapes) -> bool:
    """Whether the model has the module, under whatever name its weight is: that of a quantized one has several."""
    return f"{module}.weight" in shapes or any(name.startswith(f"{module}.") for name in shapes)


def _model_shapes(folder: Path) -> Shapes:
    shapes: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            shapes |= header(file)
        except AdapterError:  # vLLM says what is wrong with the model
            return {}
    return shapes
