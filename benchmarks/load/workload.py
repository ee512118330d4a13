"""The loads, and the requests they consist of: the same bytes for every server.

Prompts consist of words that are one token each, drawn anew for every request and round, so that no prefix cache helps.
Every answer has exactly as many tokens as the load says, since the end of a turn is ignored.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from benchmarks.load.drive import Request

MODEL_NAME = "bench"
"""What every server calls the model."""

Mode = Literal["standard", "reasoning", "half"]

SAMPLING: dict[bool, dict[str, float]] = {
    False: {"temperature": 0.0},
    True: {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "min_p": 0.0},
}
"""By whether a request thinks: the modes' own, sent along because peers have no modes, and other defaults (llama.cpp
cuts to 40 tokens, and by probability)."""
_WORD = re.compile(r"Ġ?([a-z]+)")


@dataclass(frozen=True, kw_only=True)
class Load:
    """`requests` over `streams` at once; in mode `half` every other one thinks. Given up after `limit` seconds.

    Before it is measured it runs once with `warm_up` output tokens, unless that is 0.
    """

    streams: int
    mode: Mode
    prompt_tokens: int
    output_tokens: int
    requests: int
    limit: float
    warm_up: int

    @property
    def name(self) -> str:
        """A description that is also unique."""
        return f"{self.streams} {self.mode} {self.prompt_tokens}"

    def thinks(self, number: int) -> bool:
        """Whether the request of this number does."""
        return self.mode == "reasoning" or (self.mode == "half" and number % 2 == 1)


def _load(
    streams: int, mode: Mode, prompt: int, output: int, *, each: int = 1, limit: float = 60, warm_up: int = 8
) -> Load:
    return Load(
        streams=streams,
        mode=mode,
        prompt_tokens=prompt,
        output_tokens=output,
        requests=streams * each,
        limit=limit,
        warm_up=warm_up,
    )


EMBEDDED = (
    _load(1, "standard", 100, 256),
    _load(1, "reasoning", 100, 256),
    _load(8, "half", 100, 128, each=2),
    _load(32, "half", 100, 128),
    _load(128, "standard", 100, 64),
    _load(128, "reasoning", 100, 64),
    _load(128, "half", 100, 128),
    _load(8, "half", 2000, 64),
    _load(1, "standard", 32000, 64, limit=180, warm_up=0),
)
LARGE = (
    _load(1, "standard", 100, 48),
    _load(1, "reasoning", 100, 48),
    _load(8, "half", 100, 48, limit=120, warm_up=4),
    _load(32, "half", 100, 32, limit=240, warm_up=0),
    _load(1, "standard", 2000, 4, limit=90, warm_up=0),
)
QUICK = (
    _load(1, "standard", 100, 128),
    _load(1, "reasoning", 100, 128),
    _load(32, "half", 100, 64),
    _load(128, "half", 100, 64),
    _load(8, "half", 2000, 32),
)
SUITES = {"embedded": EMBEDDED, "large": LARGE, "quick": QUICK}


class Prompts:
    """Texts of an exact number of tokens, by the tokenizer of a checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        found = {match[1] for token in self._tokenizer.get_vocab() if (match := _WORD.fullmatch(token))}
        lengths = {word: self._length(f" {word}") for word in sorted(found)}
        self._each = min(lengths.values())  # 1 where a word's token holds the space before it, else 2
        self._words = [word for word, length in lengths.items() if length == self._each]

    def text(self, tokens: int, seed: str) -> str:
        """Words that make so many tokens. Every seed gives other words."""
        draw = random.Random(seed)
        first = draw.choice(self._words)
        words, odd = divmod(tokens - self._length(first), self._each)
        return " ".join([first, *draw.choices(self._words, k=words)]) + "." * odd

    def ids(self, text: str, *, thinks: bool) -> list[int]:
        """The token ids of the prompt that a server makes of the text."""
        end = "<think>\n" if thinks else "<think>\n\n</think>\n\n"
        prompt = f"[|user|]\n{text}[|endofturn|]\n[|assistant|]\n{end}"
        ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        return ids

    def _length(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))


def requests(
    load: Load, prompts: Prompts, seed: str, *, warm_up: bool = False, model: str = MODEL_NAME
) -> list[Request]:
    """The load's requests, or those of its warm-up. Every seed gives other prompts."""
    tokens = load.warm_up if warm_up else load.output_tokens
    seeds = [f"{seed}/{load.name}/{warm_up}/{number}" for number in range(load.requests)]
    return [
        _request(prompts.text(load.prompt_tokens, one), tokens, model, thinks=load.thinks(number))
        for number, one in enumerate(seeds)
    ]


def _request(text: str, output_tokens: int, model: str, *, thinks: bool) -> Request:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "chat_template_kwargs": {"enable_thinking": thinks},
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **SAMPLING[thinks],
    }
    return Request(body, thinks)
