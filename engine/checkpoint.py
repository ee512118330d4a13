"""Looks at a model folder before anything heavy is imported, so that a wrong path is an error at once.

Checks only what every checkpoint has; whether vLLM can run the architecture is `loading`'s to find out.
"""

import json
from pathlib import Path
from typing import Any

from model_impl.gguf import LINK, stands_for_a_file


class ModelError(ValueError):
    """The model cannot be served; the message is one line that says what to do."""


def check_model(model: str) -> None:
    """Raises ModelError if `model` is a local path that is no checkpoint. A hub id passes: vLLM fetches it."""
    folder = Path(model).expanduser()
    if folder.is_file():
        raise ModelError(_no_folder(folder))
    if not folder.is_dir():
        if _looks_like_a_path(model):
            raise ModelError(f"no model folder at {model}; name a folder with config.json and weights, or a hub id")
        return
    if any(folder.glob("*.gguf")) and not weight_bytes(folder) and not stands_for_a_file(model):
        raise ModelError(f"{model} is a folder with GGUF files; name the one that is meant")
    read_config(folder)
    if weight_bytes(folder) == 0:
        raise ModelError(f"{model} holds no weights (*.safetensors, *.bin or its GGUF file); is the download complete?")


_WANTED = "name the folder of a checkpoint in transformers' format (config.json, *.safetensors)"


def _no_folder(file: Path) -> str:
    if file.suffix == ".gguf":
        return f"{file} is a GGUF file, which the engine reads from the folder that `twogear serve` makes of it"
    return f"{file} is a file, and no GGUF; {_WANTED}"


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ModelError if it is missing, no JSON object, or names no architecture."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json; name the folder of a checkpoint in transformers' format")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} must be a JSON object")
    missing = [name for name in ("architectures", "model_type") if not config.get(name)]
    if missing:
        raise ModelError(f"{path} lacks {' and '.join(missing)}; add what the checkpoint's makers published")
    architectures, model_type = config["architectures"], config["model_type"]
    if not isinstance(model_type, str):
        raise ModelError(f"{path}: model_type must be a text")
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ModelError(f"{path}: architectures must be a list of texts")
    return config


def weight_bytes(folder: Path) -> int:
    """The size of the weight files, 0 if there are none."""
    if stands_for_a_file(str(folder)):
        return (folder / LINK).stat().st_size if (folder / LINK).is_file() else 0
    patterns = ("*.safetensors", "*.bin", "*.pt")
    files = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())  # a link may lead nowhere
    return sum(path.stat().st_size for path in files)


def _looks_like_a_path(model: str) -> bool:
    """Hub ids are `name` or `owner/name`."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith("/")
