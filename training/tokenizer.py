"""Trains the byte-level BPE tokenizer of the embedded checkpoint: single digits, EXAONE's special tokens.

The vocabulary is small on purpose: the wording of the tasks and of conversation gets whole tokens, other words fall
into short pieces.
"""

import json
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chat_templates.format import ChatFormat
from chat_templates.settings import THINKING
from chat_templates.tokens import Vocabulary
from tasks import conversation, needles, records, tool_use
from tasks.families import FAMILIES, draw, rephrase

FILES = ("tokenizer.json", "tokenizer_config.json")
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
# Words without their leading space, so that one is the same tokens after a space and after a quotation mark and can be
# copied into JSON; digits one by one, punctuation, line ends apart from other white space. Capitals start a token.
_SPLIT = r"[A-Z]+[a-z]*|[a-z]+|\p{N}| ?[^\sA-Za-z\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_TRAINING_PROMPTS = 6000
_NEEDLE_SENTENCES = 5


def corpus(seed: int) -> Iterator[str]:
    """The texts that merges are learned from: tasks with traces, conversation, records, tools as shown, needles."""
    rng = random.Random(seed)
    fmt = ChatFormat(Vocabulary(_untrained().to_str()))
    calls = (f"call_{number}" for number in count())
    for _ in range(_TRAINING_PROMPTS):
        exchange = conversation.draw(rng, ("it",))
        yield from exchange
        item = draw(rng.choice(tuple(FAMILIES)), rng)
        yield from (item.question, rephrase(item, rng).question)
        yield item.trace
        yield from records.draw(rng)[:1]
        yield needles.draw(rng.choice(needles.FAMILIES), rng.random(), rng).prompt(_NEEDLE_SENTENCES)
        tools = tool_use.tool_set(rng)
        messages = tool_use.exchange(tool_use.use(tools[0], rng), calls)
        ids, _ = fmt.render_conversation(messages, THINKING, [tool.schema() for tool in tools])
        yield fmt.decode(ids)


def _untrained() -> Tokenizer:
    """Single bytes and the special tokens: enough to render with."""
    return _trained(iter(()), 0)


def train(vocabulary_size: int, seed: int) -> Tokenizer:
    """A tokenizer of at most `vocabulary_size` tokens; the special tokens get the first ids in their order."""
    return _trained(corpus(seed), vocabulary_size)


def _trained(texts: Iterator[str], vocabulary_size: int) -> Tokenizer:
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
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and the `tokenizer_config.json` that transformers and vLLM read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / FILES[0]))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "bos_token": "[BOS]",
        "eos_token": "[|endofturn|]",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    (folder / FILES[1]).write_text(json.dumps(config, indent=2) + "\n")
