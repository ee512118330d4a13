"""The folder that stands for a GGUF file: what a checkpoint in transformers' format has, but for the weights.

It is made at the file's first start, in the user's cache, and found again by the file's path, size and time of change
and by the sources that make it. It is made apart and renamed when it is whole, so several starts at once do no harm.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_impl.gguf import INDEX, LINK, METHOD, GgufError
from model_impl.gguf.blocks import FLOATS, FOUR_BITS, KINDS
from model_impl.weights import BYTES_PER_WEIGHT, SHARED

if TYPE_CHECKING:
    from model_impl.gguf.config import Placed

_MAKES = ("__init__.py", "blocks.py", "config.py", "container.py", "folder.py", "tokenizer.py")
"""The sources that decide what is in a folder."""


def folder_for(path: Path, *, packed: bool) -> Path:
    """The folder of a file, made if it is not there.

    `packed`: weights are to stay in few bits, for our kernels; else they are to be widened to bfloat16.
    Raises GgufError.
    """
    path = path.expanduser().resolve()
    folder = _cache() / f"{path.stem}-{_digest(path, packed=packed)}"
    if (folder / INDEX).is_file():
        return folder
    _make(path, folder, packed=packed)
    return folder


def _make(path: Path, folder: Path, *, packed: bool) -> None:
    # What reads the container brings much along that later starts do without.
    from model_impl.gguf.config import config_of, end_ids, placed_tensors  # noqa: PLC0415
    from model_impl.gguf.container import read  # noqa: PLC0415
    from model_impl.gguf.tokenizer import tokenizer_config, tokenizer_of  # noqa: PLC0415

    file = read(path)
    config = config_of(file)
    tensors = placed_tensors(file, config)
    if packed and any(placed.tensor.kind not in FLOATS for placed in tensors):
        config["quantization_config"] = {"quant_method": METHOD}
    try:
        tokenizer = tokenizer_of(file).to_str()
        whole = {
            "tokenizer.json": tokenizer,
            "tokenizer_config.json": _json(tokenizer_config(file)),
            "generation_config.json": _json({"eos_token_id": end_ids(file)}),
            "config.json": _json(config),
            INDEX: _json(_index(path, tensors)),
        }
        _write(folder, whole, path)
    except OSError as error:
        raise GgufError(f"{folder}, which stands for {path}, cannot be written: {error.strerror or error}") from error


def held_bytes(folder: Path) -> int:
    """Of the weights in memory, of a folder that this made: in our formats, or in bfloat16."""
    return _bytes(folder, dict.fromkeys(KINDS, BYTES_PER_WEIGHT[8]) | dict.fromkeys(FOUR_BITS, BYTES_PER_WEIGHT[4]))


def loading_bytes(folder: Path) -> int:
    """The same and what is not packed yet, at most: integers of 8 bits and two floats for each group, of the matrices
    of a layer, and of one that is being read.
    """
    tensors = json.loads((folder / INDEX).read_text(encoding="utf-8"))["tensors"]
    largest = max(math.prod(shape) for _, _, shape, *_ in tensors)
    return held_bytes(folder) + int(3 * largest * (1 + 8 / SHARED))


def _bytes(folder: Path, of_kinds: Mapping[str, float]) -> int:
    """`of_kinds`: bytes of a weight of a matrix that is packed."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    total = 0.0
    for _, kind, shape, *_ in json.loads((folder / INDEX).read_text(encoding="utf-8"))["tensors"]:
        packed = "quantization_config" in config and len(shape) == 2
        total += math.prod(shape) * (of_kinds[kind] if packed else 2)
    return int(total)


def _write(folder: Path, files: Mapping[str, str], link: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as apart:
        made = Path(apart) / folder.name
        made.mkdir()
        for name, text in files.items():
            (made / name).write_text(text, encoding="utf-8")
        (made / LINK).symlink_to(link)
        shutil.rmtree(folder, ignore_errors=True)  # of one without an index
        try:
            made.rename(folder)
        except OSError:
            if not (folder / INDEX).is_file():  # else another start was quicker
                raise


def _index(path: Path, tensors: "list[Placed]") -> dict[str, Any]:
    status = path.stat()
    entries = [
        [each.name, each.tensor.kind, each.tensor.shape, each.tensor.offset, each.tensor.size, each.heads]
        for each in tensors
    ]
    return {"size": status.st_size, "changed": status.st_mtime_ns, "tensors": entries}


def _digest(path: Path, *, packed: bool) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(json.dumps([str(path), status.st_size, status.st_mtime_ns, packed]).encode())
    for name in _MAKES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twogear" / "gguf"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1)
