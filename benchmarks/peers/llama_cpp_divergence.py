"""What fewer bits do to a model in llama.cpp, by its own tool: `llama-perplexity --kl-divergence`.

The tool cuts a text into windows, reads each without those before, and scores its second half. It first writes what the
model answers in bf16 to a file, tokens included, and then compares a quantized model with that. So the windows that it
scored can be read from the file, for others to score the same.
"""

import math
import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.load.checkpoints import cache_folder
from benchmarks.peers import llama_cpp
from model_impl.gguf import container
from server.cli_errors import UsageError

KINDS = ("Q8_0", "Q4_K_M")
"""By llama.cpp's names."""
_MAGIC = b"_logits_"
_NO_MARKS = "tokenizer.ggml.add_bos_token=bool:false,tokenizer.ggml.add_eos_token=bool:false"
"""Tokens that are no text would stand in the place of each window's first."""
_FIGURES = {
    "kl": r"^Mean +KLD: +(\S+) ±",
    "kl_error": r"^Mean +KLD: +\S+ ± +(\S+)",
    "same_top": r"^Same top p: +(\S+) ±",
    "perplexity": r"^Mean PPL\(Q\) *: +(\S+) ±",
}
_PERPLEXITY_SO_FAR = re.compile(r"\[\d+\]([\d.]+),")


class Divergences(NamedTuple):
    """`windows`: ids of tokens. `formats`: figures by kind, as `benchmarks.weights_quality` has them."""

    windows: list[list[int]]
    formats: dict[str, dict[str, float]]


def first_scored(window: int) -> int:
    """The first position in a window whose answer is scored; the last one's is not, since nothing follows."""
    return window // 2


def measure(checkpoint: Path, text: str, window: int, count: int) -> Divergences:
    """Of a checkpoint folder in llama.cpp's formats, over so many windows of that many tokens. Raises UsageError."""
    name = checkpoint.resolve().name
    llama_cpp.build()
    source = llama_cpp.gguf(checkpoint, name)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        words, answers = Path(folder) / "text", Path(folder) / "answers"
        words.write_text(text, encoding="utf-8")
        _check_room(source, window, count)
        said = _run(source, answers, window, "--file", str(words), "--chunks", str(count))
        windows = _windows(answers, said)
        if len(windows) < count:
            raise UsageError(f"the text has {len(windows)} windows of {window} tokens, and {count} are asked for")
        perplexity = float(_PERPLEXITY_SO_FAR.findall(said)[-1])
        formats = {}
        for kind in KINDS:
            file = llama_cpp.quantized_gguf(checkpoint, name, kind)
            found = _figures(_run(file, answers, window, "--kl-divergence"))
            scored = count * (window - 1 - first_scored(window))
            formats[kind] = found | {
                "tokens": scored,
                "perplexity_bf16": perplexity,
                "bits_per_weight": _bits_per_weight(file),
            }
    return Divergences(windows, formats)


def _run(model: Path, answers: Path, window: int, *options: str) -> str:
    """What the tool says."""
    command = [
        *(str(llama_cpp.server_binary().with_name("llama-perplexity")), "--model", str(model)),
        *("--threads", str(len(os.sched_getaffinity(0))), "--override-kv", _NO_MARKS),
        *("--ctx-size", str(window), "--batch-size", str(window), "--kl-divergence-base", str(answers), *options),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        how = f"with {done.returncode}" if done.returncode > 0 else f"by signal {-done.returncode}"
        raise UsageError(f"llama-perplexity ended {how} on {model.name}: {_last(done.stdout)}")
    return done.stdout


def _windows(answers: Path, said: str) -> list[list[int]]:
    """The windows whose answers the tool has written; it ends well where it could not."""
    with answers.open("rb") as file:
        head = file.read(len(_MAGIC) + 12)
        if len(head) != len(_MAGIC) + 12 or not head.startswith(_MAGIC):
            raise UsageError(f"llama-perplexity has scored nothing: {_last(said)}")
        window, _, count = struct.unpack("<3i", head[len(_MAGIC) :])
        ids = struct.unpack(f"<{window * count}i", file.read(4 * window * count))
    return [list(ids[first : first + window]) for first in range(0, len(ids), window)]


def _figures(said: str) -> dict[str, float]:
    found = {name: re.search(pattern, said, re.MULTILINE) for name, pattern in _FIGURES.items()}
    figures = {name: float(match[1]) for name, match in found.items() if match is not None}
    if figures.keys() != _FIGURES.keys():
        raise UsageError(f"llama-perplexity has compared nothing: {_last(said)}")
    return figures | {"same_top": figures["same_top"] / 100}


def _bits_per_weight(file: Path) -> float:
    tensors = container.read(file).tensors.values()
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    return 8 * sum(tensor.size for tensor in tensors) / weights


def _check_room(source: Path, window: int, count: int) -> None:
    """Answers are a number of 16 bits for each scored position and word of the vocabulary."""
    vocabulary = max(tensor.shape[0] for tensor in container.read(source).tensors.values() if len(tensor.shape) > 1)
    size = 2 * count * (window - 1 - first_scored(window)) * (vocabulary + 5)
    if (free := shutil.disk_usage(cache_folder()).free) < size:
        raise UsageError(f"{cache_folder()} has {free / 1e9:.1f} GB free; the model's answers take {size / 1e9:.1f} GB")


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["it said nothing"])[-1]
