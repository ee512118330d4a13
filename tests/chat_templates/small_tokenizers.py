"""Four small tokenizers, one for each kind that checkpoints bring. This file fixes them, so golden ids are stable."""

import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from chat_templates.format import ChatFormat
from chat_templates.tokens import TAGS, Vocabulary

_MERGES = [
    *("Ġ t", "h e", "i n", "Ġt he", "e r", "a n", "o n", "r e", "Ġ a", "o u", "Ġ s", "e n", "i s", "t h", "n d", "Ċ Ċ"),
    *(
        "o l",
        "l l",
        "e ll",
        "H ell",
        "Hell o",
        "th in",
        "thin k",
        "< /",
        "( Ġ",
        "é ľ",
        "ê µ",
        "ì ļ",
        "Ġ Ġ",
        '" :',
        "} }",
    ),
]
_PIECES = ["▁", "▁the", "▁a", "th", "in", "an", "er", "ing", "think", "call", "\n\n", "▁▁"]
_UNKNOWN = "<unk>"


def _bpe_vocabulary(first: list[str]) -> dict[str, int]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*first, *alphabet, *(merge.replace(" ", "") for merge in _MERGES)]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def _byte_level(vocabulary: dict[str, int], *, ignore_merges: bool) -> Tokenizer:
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    pairs = [merge.split() for merge in _MERGES]
    merges = [(left, right) for left, right in pairs if {*left, *right} <= alphabet]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_level_with(first: list[str]) -> Tokenizer:
    """A byte-level tokenizer whose vocabulary begins with `first`; nothing is an added token yet."""
    return _byte_level(_bpe_vocabulary(first), ignore_merges=False)


def byte_level() -> Tokenizer:
    """As ours: tags are special and come first."""
    special = ["[PAD]", "[BOS]", *TAGS]
    tokenizer = byte_level_with(special)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return tokenizer


def whole_words() -> Tokenizer:
    """As Qwen3 and Llama 3: tags are ordinary added tokens, and the model takes a word of the vocabulary whole.

    Its words are split at blanks only, so that the model meets the tags as words.
    """
    tokenizer = _byte_level(_bpe_vocabulary(list(TAGS)), ignore_merges=True)
    blanks = pre_tokenizers.Split(" ", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [blanks, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in TAGS])
    tokenizer.add_tokens([AddedToken("한국어", special=False)])
    return tokenizer


def _sentencepiece_words() -> list[str]:
    letters = [chr(code) for code in range(32, 127)] + ["\n", "é", "한"]
    return list(dict.fromkeys([_UNKNOWN, *TAGS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *_PIECES]))


def sentencepiece() -> Tokenizer:
    """As Llama 2: characters with bytes to fall back to, blanks as ▁."""
    words = _sentencepiece_words()
    merges = [("t", "h"), ("i", "n"), ("a", "n"), ("e", "r"), ("▁", "a"), ("\n", "\n"), ("▁", "▁")]
    tokenizer = Tokenizer(
        BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=merges,
            unk_token=_UNKNOWN,
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (_UNKNOWN, *TAGS)])
    return tokenizer


def unigram() -> Tokenizer:
    """As T5 and Gemma's kin: the tags are the likeliest pieces of the model."""
    words = _sentencepiece_words()
    scores = [(word, 0.0 if word in TAGS else -1.0 - 8.0 / len(word)) for word in words]
    tokenizer = Tokenizer(Unigram(scores, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (_UNKNOWN, *TAGS)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "whole_words": whole_words,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
}


def make_format(kind: str = "byte_level") -> ChatFormat:
    """The chat format with the small tokenizer of that kind."""
    return ChatFormat(Vocabulary(KINDS[kind]().to_str()))


def tokenizer_spec(kind: str = "byte_level") -> dict[str, Any]:
    """tokenizer.json of that kind, to be altered."""
    spec: dict[str, Any] = json.loads(KINDS[kind]().to_str())
    return spec
