"""Quantized weights kept for the next start: one file for a checkpoint, format and rank, in the user's cache folder.

A file is known by what decides its bytes: the checkpoint's files (names, sizes, times of change, and where their
tensors lie), the format, the rank, and the sources of the kernels. It is written whole and then renamed, so several
starts at once leave one whole file. A file that is cut off or changed is found by its checksums and written anew. Knows
layers by their names, and nothing of what is in them. Small models are not kept: quantizing them takes no time.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model_impl.cpu.demand_zero import room
from model_impl.cpu.native import SOURCES, cache_folder

logger = logging.getLogger(__name__)

SMALLEST = 64 << 20
"""Bytes of a model's packed weights that are worth a file."""
UNUSED_DAYS = 30
"""After which a file that no start has read goes, when another is written."""
_MAGIC = b"twogear weights 1\n"
_MAKES = ("quantize.cpp", "quantized.h", "halves.h")
"""The sources that decide what packed weights are."""


class Matrix(NamedTuple):
    """A packed weight of (outputs, inputs), as `QuantizedProduct` has it."""

    packed: torch.Tensor
    outputs: int
    inputs: int


def file_for(checkpoint: Path, what: Sequence[object]) -> Path | None:
    """Where the packed weights of a checkpoint folder are kept; None if it has no safetensors files.

    `what` else decides them: format, rank, number of ranks.
    """
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256(json.dumps([str(part) for part in what]).encode())
    for name in _MAKES:
        digest.update((SOURCES / name).read_bytes())
    for path in files:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(min(1 << 20, 8 + int.from_bytes(file.read(8), "little"))))
    return cache_folder().parent / "weights" / f"{digest.hexdigest()[:32]}.bin"


def read(path: Path) -> dict[str, Matrix]:
    """By layer, what was kept; nothing where there is no file, or not a whole one, which then goes."""
    try:
        with path.open("rb") as file:
            found = _read(file)
        os.utime(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the quantized weights in %s cannot be used (%s): quantizing anew", path, error)
        path.unlink(missing_ok=True)
        return {}
    return found


def keep(path: Path, matrices: Mapping[str, Matrix]) -> None:
    """Writes the file, unless that is not worth it or there is no room; what goes wrong costs the next start's time."""
    size = sum(matrix.packed.numel() for matrix in matrices.values())
    if size < SMALLEST:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_unused(path.parent)
        if shutil.disk_usage(path.parent).free < 2 * size:
            logger.warning("no room in %s to keep %.1f GB of quantized weights", path.parent, size / 1e9)
            return
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            _write(whole, matrices)
            whole.rename(path)
    except OSError as error:
        logger.warning("the quantized weights are not kept for the next start: %s", error)


def _write(path: Path, matrices: Mapping[str, Matrix]) -> None:
    entries = {
        name: [matrix.outputs, matrix.inputs, matrix.packed.numel(), zlib.crc32(_bytes(matrix.packed))]
        for name, matrix in matrices.items()
    }
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(_MAGIC + len(header).to_bytes(8, "little") + header + zlib.crc32(header).to_bytes(4, "little"))
        for matrix in matrices.values():
            file.write(_bytes(matrix.packed))


def _read(file: Any) -> dict[str, Matrix]:
    """Raises ValueError, or what malformed entries raise."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is of another version")
    header = file.read(min(64 << 20, int.from_bytes(file.read(8), "little")))
    if zlib.crc32(header) != int.from_bytes(file.read(4), "little"):
        raise ValueError("its list of layers is damaged")
    found = {}
    for name, (outputs, inputs, size, checksum) in json.loads(header).items():
        packed = room(size)
        if file.readinto(_bytes(packed)) != size:
            raise ValueError("it is cut off")
        if zlib.crc32(_bytes(packed)) != checksum:
            raise ValueError(f"{name} is damaged")
        found[name] = Matrix(packed, outputs, inputs)
    return found


def _bytes(packed: torch.Tensor) -> memoryview:
    array: Any = packed.numpy()
    return memoryview(array).cast("B")


def _remove_unused(folder: Path) -> None:
    """Files that long were not read, and what starts that were cut off have left."""
    for path in folder.iterdir():
        age = time.time() - path.stat().st_mtime
        if path.suffix == ".bin" and age > UNUSED_DAYS * 86400:
            path.unlink(missing_ok=True)
        elif path.is_dir() and age > 86400:
            shutil.rmtree(path, ignore_errors=True)
