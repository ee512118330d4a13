"""What fewer bits do to a model: `python -m benchmarks.weights_quality MODEL`, its distributions beside bfloat16's.

A plain run through transformers, window by window, of a text: once with the checkpoint's weights in bfloat16, then for
each format with every projection, the input embedding and the output head as `twogear serve --weights` has them, by the
same kernels. It needs no server, and takes any architecture of transformers. What is measured is the mean divergence
(KL, in nats) of the distributions, how often the likeliest token is the same, and perplexity. As llama.cpp does it, the
second half of each window is scored, for which there is something to go by.

`--llama-cpp` measures llama.cpp's Q8_0 and Q4_K_M too: by its own tool, beside its own bf16, over the same windows and
positions (`peers/llama_cpp_divergence.py`). `--formats kv-fp8` has bfloat16 weights, and keys and values rounded as
`--kv-cache-dtype fp8` keeps them.

The embedded model is measured on conversations of its own tasks in both modes, or on their plain text with llama.cpp,
another on the documentation that ships with Python, or on `--text FILE`. bfloat16 itself is measured beside the same
weights with float32 activations: ours are rounded to bfloat16 on both sides, llama.cpp's are float32.

With `--json FILE` what is measured so far stands in FILE.part, and the same command goes on from there.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import pydoc_data.topics
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from benchmarks.load.tables import Cells
from benchmarks.peers import llama_cpp
from benchmarks.peers.llama_cpp_divergence import Divergences, first_scored
from benchmarks.peers.llama_cpp_divergence import measure as measure_theirs
from benchmarks.result_text import result_text
from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from model_impl.cpu.native import QUANTIZED, SOURCES
from model_impl.cpu.quantized import QuantizedProduct
from model_impl.weights import BITS, TABLE_BITS, Format
from server.cli_errors import UsageError
from server.settings import EMBEDDED_MODEL
from tasks.families import EMBEDDED, held_out_items

FORMATS: tuple[Format, ...] = ("int8", "int4")
BESIDE_FLOAT32 = "bf16 beside float32"
MEASURED = (*FORMATS, BESIDE_FLOAT32)
KV_FP8 = "kv-fp8"
CHOICES = (*MEASURED, KV_FP8)
SMALLEST_WINDOW = 100
"""Tokens; of fewer, llama.cpp tells no mean."""


_ITEMS = 10_000


@dataclasses.dataclass
class Sums:
    """Over all positions: divergence and its square, positions with the same likeliest token, -log p of what comes."""

    count: int = 0
    divergence: float = 0.0
    square: float = 0.0
    same: int = 0
    surprise: float = 0.0
    surprise_of_reference: float = 0.0

    def add(self, reference: torch.Tensor, logprobs: torch.Tensor, following: torch.Tensor) -> None:
        """(T, vocabulary) log-probabilities of both, and the T tokens that follow."""
        divergence = (reference.exp() * (reference - logprobs)).sum(-1).double()
        self.count += len(following)
        self.divergence += float(divergence.sum())
        self.square += float((divergence**2).sum())
        self.same += int((reference.argmax(-1) == logprobs.argmax(-1)).sum())
        self.surprise -= float(logprobs.gather(1, following[:, None]).sum())
        self.surprise_of_reference -= float(reference.gather(1, following[:, None]).sum())

    def result(self) -> dict[str, float]:
        """What is printed and written."""
        mean = self.divergence / self.count
        return {
            "tokens": self.count,
            "kl": mean,
            "kl_error": math.sqrt(max(0.0, self.square / self.count - mean**2) / self.count),
            "same_top": self.same / self.count,
            "perplexity": math.exp(self.surprise / self.count),
            "perplexity_bf16": math.exp(self.surprise_of_reference / self.count),
        }


class Progress:
    """What is measured so far: in a file, where one is named, that goes when all is done.

    `measurement`: what decides the figures; a file of another one is refused by UsageError.
    """

    def __init__(self, path: Path | None, measurement: str) -> None:
        self._path, self._measurement = path, measurement
        self.windows = 0
        self.sums: dict[str, Sums] = {}
        self.theirs: Divergences | None = None
        if path is None or not path.exists():
            return
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["measurement"] != measurement:
            raise UsageError(f"{path} is of another measurement: remove it, or name another file")
        self.windows = kept["windows"]
        self.sums = {name: Sums(**sums) for name, sums in kept["sums"].items()}
        self.theirs = None if kept["theirs"] is None else Divergences(*kept["theirs"])

    def write(self) -> None:
        """Keeps it."""
        if self._path is None:
            return
        sums = {name: dataclasses.asdict(own) for name, own in self.sums.items()}
        kept = {"measurement": self._measurement, "windows": self.windows, "sums": sums, "theirs": self.theirs}
        unfinished = self._path.with_suffix(".writing")
        unfinished.write_text(json.dumps(kept), encoding="utf-8")
        unfinished.rename(self._path)

    def end(self) -> None:
        """All is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class _Linear(nn.Module):
    """In the place of nn.Linear."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias  # models look at their dtype
        self.product = QuantizedProduct.of(weight, bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x.contiguous(), x, self.bias)


class _Table(nn.Module):
    """In the place of nn.Embedding."""

    def __init__(self, weight: torch.Tensor, bits: int) -> None:
        super().__init__()
        self.weight = weight
        self.product = QuantizedProduct.of(weight, bits)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.product.rows(ids)


def quantize(model: nn.Module, weights: Format) -> float:
    """Has a bfloat16 model of transformers compute with weights of that format, in place. Returns the bits of each."""
    sizes: dict[int, tuple[int, int]] = {}  # packed and as they were; by where, since a head may be the embedding
    head: Any = cast("Any", model).get_output_embeddings()
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            parent, _, last = name.rpartition(".")
            other: _Linear | _Table
            if isinstance(module, nn.Linear):
                bits = TABLE_BITS[weights] if module is head else BITS[weights]
                other = _Linear(module.weight.data, module.bias, bits)
            elif isinstance(module, nn.Embedding):
                other = _Table(module.weight.data, TABLE_BITS[weights])
            else:
                continue
            setattr(model.get_submodule(parent), last, other)
            sizes[module.weight.data_ptr()] = (other.product.packed.numel(), module.weight.numel())
    return 8 * sum(packed for packed, _ in sizes.values()) / sum(count for _, count in sizes.values())


def round_pages(model: nn.Module) -> None:
    """Has a model of transformers attend to keys and values that are rounded to float8_e4m3fn, in place."""
    transformers.AttentionInterface.register(KV_FP8, _attend_to_rounded)
    transformers.AttentionMaskInterface.register(KV_FP8, sdpa_mask)
    cast("Any", model).set_attn_implementation(KV_FP8)


def _attend_to_rounded(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    return sdpa_attention_forward(module, query, _rounded(key), _rounded(value), *args, **kwargs)


def _rounded(numbers: torch.Tensor) -> torch.Tensor:
    most = torch.finfo(torch.float8_e4m3fn).max
    return numbers.float().clamp(-most, most).to(torch.float8_e4m3fn).to(numbers.dtype)


def main() -> None:
    """Measures, prints a table, and writes the result where one is asked for."""
    args = _arguments()
    count = -(-args.tokens // (args.window - 1 - first_scored(args.window)))
    text = _text(args.model, args.text)
    conversations = _is_embedded(args.model) and args.text is None and not args.llama_cpp
    ids = _conversations(args.model) if conversations else _ids(args.model, text)
    own = list(itertools.islice(_windows(ids, args.window), count))
    path = None if args.json is None else args.json.with_name(f"{args.json.name}.part")
    progress = Progress(path, _measurement(args, own))
    if args.llama_cpp and progress.theirs is None:
        progress.theirs = measure_theirs(args.model, text, args.window, count)
        progress.write()
    theirs = progress.theirs
    windows = own if theirs is None else theirs.windows
    if len(windows) < count:
        raise UsageError(f"the text has {len(windows)} windows of {args.window} tokens, and {count} are asked for")
    measured = measure(args.model, args.formats, windows, progress)
    if theirs is not None:
        measured |= {f"llama.cpp {kind}": found for kind, found in theirs.formats.items()}
    print(table(measured), end="")
    if args.json is not None:
        versions = {name: metadata.version(name) for name in ("torch", "transformers")}
        result = {
            "what": "weights_quality",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "command": "python -m benchmarks.weights_quality " + " ".join(sys.argv[1:]),
            "versions": versions if theirs is None else versions | {"llama-cpp-python": llama_cpp.VERSION},
            "model": args.model.resolve().name,
            "windows": {"count": count, "tokens": args.window, "as_the_checkpoints_tokenizer": windows == own},
            "formats": measured,
        }
        args.json.write_text(result_text(result))
    progress.end()


def table(measured: Mapping[str, Mapping[str, float]]) -> str:
    """The figures of each format, in Markdown."""
    rows = [
        [
            name,
            f"{found['bits_per_weight']:.2f}",
            f"{found['kl']:.5f} ± {found['kl_error']:.5f}",
            f"{100 * found['same_top']:.2f} %",
            f"{found['perplexity']:.4f}",
            f"{found['perplexity_bf16']:.4f}",
            f"{found['tokens']:,.0f}",
        ]
        for name, found in measured.items()
    ]
    head = ["weights", "bits each", "KL to bf16", "same likeliest", "perplexity", "of bf16", "tokens"]
    return Cells(head, rows).markdown()


def measure(
    folder: Path, names: Sequence[str], windows: Sequence[Sequence[int]], progress: Progress
) -> dict[str, dict[str, float]]:
    """Of a checkpoint: its distributions in each format beside bfloat16's, over the second halves of all windows.

    BESIDE_FLOAT32: those of bfloat16 beside those with the same weights and float32 activations. All models are in
    memory at once, so that a window is read by bfloat16's only once.
    """
    reference = _load(folder)
    others, bits = {name: _load(folder) for name in names}, dict.fromkeys(names, 16.0)
    for name, other in others.items():
        progress.sums.setdefault(name, Sums())
        if name == BESIDE_FLOAT32:
            other.float()
        elif name == KV_FP8:
            round_pages(other)
        else:
            bits[name] = quantize(other, cast("Format", name))
    for number in range(progress.windows, len(windows)):
        ids, first = torch.tensor([windows[number]]), first_scored(len(windows[number]))
        expected, following = _logprobs(reference, ids, first), ids[0, first + 1 :]
        for name, other in others.items():
            pair = (expected, _logprobs(other, ids, first))
            progress.sums[name].add(*(pair[::-1] if name == BESIDE_FLOAT32 else pair), following)
        progress.windows = number + 1
        progress.write()
        print(f"{number + 1} of {len(windows)} windows", end="\r", file=sys.stderr, flush=True)
    return {name: progress.sums[name].result() | {"bits_per_weight": bits[name]} for name in names}


def _measurement(args: argparse.Namespace, windows: Sequence[Sequence[int]]) -> str:
    """What decides the figures, as a digest: the model's files, the tokens, the formats, and the kernels."""
    files = sorted((path.name, path.stat().st_size) for path in args.model.iterdir() if path.is_file())
    what = [args.model.resolve().name, files, args.formats, args.window, args.llama_cpp, windows]
    digest = hashlib.sha256(json.dumps(what).encode())
    for name in QUANTIZED:
        digest.update((SOURCES / name).read_bytes())
    return digest.hexdigest()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=EMBEDDED_MODEL, help="a checkpoint folder")
    parser.add_argument("--text", type=Path, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=20_000, help="that are scored, at least")
    parser.add_argument("--window", type=int, default=512, metavar="TOKENS", help="each is read without those before")
    parser.add_argument(
        "--formats", type=_formats, default=list(MEASURED), metavar="A,B", help=f"of {', '.join(CHOICES)}"
    )
    parser.add_argument("--llama-cpp", action="store_true", help="llama.cpp's Q8_0 and Q4_K_M too; it is built first")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.window < SMALLEST_WINDOW or args.tokens < SMALLEST_WINDOW:
        parser.error(f"--window and --tokens must be at least {SMALLEST_WINDOW}")
    return args


def _formats(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(CHOICES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(CHOICES)}")
    return names


def _load(folder: Path) -> nn.Module:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return cast("nn.Module", model.eval())


@torch.no_grad()
def _logprobs(model: nn.Module, ids: torch.Tensor, first: int) -> torch.Tensor:
    """(1, T) to (T - 1 - first, vocabulary)."""
    logits: torch.Tensor = model(ids).logits[0, first:-1]
    return logits.float().log_softmax(-1)


def _windows(ids: Iterator[int], window: int) -> Iterator[list[int]]:
    """So many ids at a time; the last that are fewer are left out."""
    while len(piece := list(itertools.islice(ids, window))) == window:
        yield piece


def _conversations(model: Path) -> Iterator[int]:
    """In both modes, of the embedded model's tasks."""
    fmt = ChatFormat.from_folder(model)
    for number, item in enumerate(held_out_items(EMBEDDED, _ITEMS, 0)):
        answer = {"role": "assistant", "content": item.answer, "reasoning_content": item.trace}
        conversation = [{"role": "user", "content": item.question}, answer]
        yield from fmt.render_conversation(conversation, (DIRECT, THINKING)[number % 2])[0]


def _ids(model: Path, text: str) -> Iterator[int]:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)  # type: ignore[no-untyped-call, unused-ignore]
    yield from tokenizer(text, add_special_tokens=False)["input_ids"]


def _is_embedded(model: Path) -> bool:
    return model.resolve() == EMBEDDED_MODEL.resolve()


def _text(model: Path, file: Path | None) -> str:
    if file is not None:
        return file.read_text(encoding="utf-8")
    if _is_embedded(model):
        items = held_out_items(EMBEDDED, _ITEMS, 0)
        return "\n".join(line for item in items for line in (item.question, item.trace, item.answer))
    return "\n".join(pydoc_data.topics.topics.values())


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"weights_quality: {error}")
