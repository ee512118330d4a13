"""Trains the byte-level BPE tokenizer of the embedded checkpoint: single digits, EXAONE's special tokens.

The vocabulary is small on purpose: the wording of the tasks and of conversation gets whole tokens, other words fall
into short pieces.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training import conversation
from training.families import FAMILIES, draw, rephrase

SPECIAL_TOKENS = (
    "[PAD]",
    "[BOS]",
    "[|endofturn|]",
    "[|system|]",
    "[|user|]",
    "[|assistant|]",
    "[|tool|]",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_result>",
    "</tool_result>",
    "<tool>",
    "</tool>",
)
# Words with their leading space, digits one by one, punctuation, line ends apart from other white space.
_SPLIT = r" ?[A-Za-z]+|\p{N}| ?[^\sA-Za-z\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_TRAINING_PROMPTS = 6000


def corpus(seed: int) -> Iterator[str]:
    """The texts that merges are learned from: tasks and their traces, conversation."""
    rng = random.Random(seed)
    for _ in range(_TRAINING_PROMPTS):
        exchange = conversation.draw(rng, ("it",))
        yield from exchange
        item = draw(rng.choice(tuple(FAMILIES)), rng)
        yield from (item.question, rephrase(item, rng).question)
        yield item.trace


def train(vocabulary_size: int, seed: int) -> Tokenizer:
    """A tokenizer of at most `vocabulary_size` tokens; the special tokens get the first ids in their order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=20,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and the `tokenizer_config.json` that transformers and vLLM read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "bos_token": "[BOS]",
        "eos_token": "[|endofturn|]",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
