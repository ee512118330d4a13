"""What fewer bits do to a model: `python -m benchmarks.weights_quality MODEL`, its distributions beside bfloat16's.

A plain run through transformers, window by window, of all of a text: once with the checkpoint's weights in bfloat16,
then for each format with every projection, the input embedding and the output head as `twogear serve --weights` has
them, by the same kernels. It needs no server, and takes any architecture of transformers. What is measured is the mean
divergence (KL, in nats) of the distributions, how often the likeliest token is the same, and perplexity.

The embedded model is measured on conversations of its own tasks in both modes, another on the documentation that ships
with Python, or on `--text FILE`.
"""

import argparse
import dataclasses
import itertools
import json
import math
import pydoc_data.topics
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from model_impl.cpu.quantized import QuantizedProduct
from model_impl.weights import BITS, TABLE_BITS, Format
from server.settings import EMBEDDED_MODEL
from tasks.families import EMBEDDED, held_out_items

FORMATS: tuple[Format, ...] = ("int8", "int4")


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


def quantize(model: nn.Module, weights: Format) -> None:
    """Has a bfloat16 model of transformers compute with weights of that format, in place."""
    head: Any = cast("Any", model).get_output_embeddings()
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            parent, _, last = name.rpartition(".")
            if isinstance(module, nn.Linear):
                bits = TABLE_BITS[weights] if module is head else BITS[weights]
                setattr(model.get_submodule(parent), last, _Linear(module.weight.data, module.bias, bits))
            elif isinstance(module, nn.Embedding):
                setattr(model.get_submodule(parent), last, _Table(module.weight.data, TABLE_BITS[weights]))


def main() -> None:
    """Measures, prints a line for each format, and writes the result where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=EMBEDDED_MODEL, help="a checkpoint folder")
    parser.add_argument("--text", type=Path, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=512, metavar="TOKENS", help="each is read without those before")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    windows = list(_windows(args.model, args.text, args.tokens, args.window))
    measured = {weights: measure(args.model, weights, windows) for weights in FORMATS}
    for weights, found in measured.items():
        print(
            f"{weights}  KL {found['kl']:.5f} ± {found['kl_error']:.5f}  same top {100 * found['same_top']:.2f} %"
            f"  perplexity {found['perplexity']:.4f} (bf16 {found['perplexity_bf16']:.4f}), {found['tokens']} tokens"
        )
    if args.json is not None:
        result = {
            "what": "weights_quality",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "command": "python -m benchmarks.weights_quality " + " ".join(sys.argv[1:]),
            "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
            "model": args.model.resolve().name,
            "formats": measured,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: Path, weights: Format, windows: Sequence[Sequence[int]]) -> dict[str, float]:
    """Of a checkpoint: its distributions with weights of that format beside bfloat16's, over all windows."""
    reference, other = _load(folder), _load(folder)
    quantize(other, weights)
    sums = Sums()
    for window in windows:
        ids = torch.tensor([window])
        sums.add(_logprobs(reference, ids), _logprobs(other, ids), ids[0, 1:])
    return sums.result()


def _load(folder: Path) -> nn.Module:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return cast("nn.Module", model.eval())


@torch.no_grad()
def _logprobs(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """(1, T) to (T - 1, vocabulary)."""
    logits: torch.Tensor = model(ids).logits[0, :-1]
    return logits.float().log_softmax(-1)


def _windows(model: Path, text: Path | None, tokens: int, window: int) -> Iterator[list[int]]:
    """Ids, so many at a time, `tokens` in all."""
    ids = list(itertools.islice(_ids(model, text), tokens))
    for start in range(0, len(ids) - 1, window):
        if len(piece := ids[start : start + window]) > 1:
            yield piece


def _ids(model: Path, text: Path | None) -> Iterator[int]:
    if text is None and model.resolve() == EMBEDDED_MODEL.resolve():
        fmt = ChatFormat.from_folder(model)
        for number, item in enumerate(held_out_items(EMBEDDED, 10_000, 0)):
            answer = {"role": "assistant", "content": item.answer, "reasoning_content": item.trace}
            conversation = [{"role": "user", "content": item.question}, answer]
            yield from fmt.render_conversation(conversation, (DIRECT, THINKING)[number % 2])[0]
    else:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)  # type: ignore[no-untyped-call, unused-ignore]
        words = "\n".join(pydoc_data.topics.topics.values()) if text is None else text.read_text(encoding="utf-8")
        yield from tokenizer(words, add_special_tokens=False)["input_ids"]


if __name__ == "__main__":
    main()
