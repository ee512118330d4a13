"""A GGUF file's vocabulary as tokenizer.json and tokenizer_config.json, with its chat template.

A file names how its text is split before the merges; how, is known to llama.cpp (llama-vocab.cpp) and for those that
are common here. An unknown name is refused: another split would give other tokens without a word.
"""

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from model_impl.gguf import GgufError
from model_impl.gguf.container import Gguf

_CONTROL, _USER_DEFINED = 3, 4
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = (
    dict.fromkeys(("gpt-2", "exaone4", "olmo", "trillion"), "gpt2")
    | dict.fromkeys(("smollm", "exaone", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"), "digits")
    | dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "midm-2.0"), _LLAMA3)
    | dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2)
    | {"tekken": _TEKKEN}
)
_WHOLE_WORDS = (_LLAMA3, _TEKKEN)
"""Splits with which a word that is in the vocabulary is one token, whatever the merges say."""
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def tokenizer_of(file: Gguf) -> Tokenizer:
    """Raises GgufError for a kind that is not known."""
    kind = file.need("tokenizer.ggml.model", str)
    if kind == "gpt2":
        tokenizer = _byte_level(file)
    elif kind == "llama":
        tokenizer = _sentencepiece(file)
    else:
        raise GgufError(f"{file.path} has a tokenizer of the kind {kind}, which is not read; gpt2 and llama are")
    kinds = file.fields.get("tokenizer.ggml.token_type") or []
    for token, of in zip(file.need("tokenizer.ggml.tokens", list), kinds, strict=False):
        if of in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=of == _CONTROL)])
    if _adds_begin(file) and (begin := _spelling(file, "bos")) is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return tokenizer


def tokenizer_config(file: Gguf) -> dict[str, Any]:
    """With the chat templates, where the file has any."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.own("context_length", int),
        "add_bos_token": _adds_begin(file),
    }
    config |= {name: spelling for name, key in _NAMED.items() if (spelling := _spelling(file, key)) is not None}
    template = file.fields.get("tokenizer.chat_template")
    tools = file.fields.get("tokenizer.chat_template.tool_use")
    if template and tools:
        named = {"default": template, "tool_use": tools}
        config["chat_template"] = [{"name": name, "template": source} for name, source in named.items()]
    elif template:
        config["chat_template"] = template
    return config


def _adds_begin(file: Gguf) -> bool:
    """Whether a text begins with the token for that; what files leave out is as llama.cpp takes it."""
    default = file.fields.get("tokenizer.ggml.model") == "llama" or _split(file) == _LLAMA3
    return bool(file.fields.get("tokenizer.ggml.add_bos_token", default))


def _spelling(file: Gguf, name: str) -> str | None:
    token, tokens = file.fields.get(f"tokenizer.ggml.{name}_token_id"), file.need("tokenizer.ggml.tokens", list)
    return str(tokens[token]) if isinstance(token, int) and 0 <= token < len(tokens) else None


def _split(file: Gguf) -> str | None:
    return _SPLITS.get(file.fields.get("tokenizer.ggml.pre", ""))


def _vocabulary(file: Gguf) -> dict[str, int]:
    return {token: i for i, token in enumerate(file.need("tokenizer.ggml.tokens", list))}


def _byte_level(file: Gguf) -> Tokenizer:
    split = _split(file)
    if split is None:
        raise GgufError(
            f"{file.path} splits text as {file.fields.get('tokenizer.ggml.pre')!r} (tokenizer.ggml.pre), which is not "
            f"known here; {', '.join(_SPLITS)} are"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in file.need("tokenizer.ggml.merges", list)]
    tokenizer = Tokenizer(models.BPE(_vocabulary(file), merges, ignore_merges=split in _WHOLE_WORDS))
    if split == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    by_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == "gpt2":
        tokenizer.pre_tokenizer = by_regex
    elif split == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_regex])
    else:
        bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), bytes_alone])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: Gguf) -> Tokenizer:
    """Llama 2's: pairs are merged by the score of what they make, and what is not in the vocabulary goes as bytes."""
    vocabulary = _vocabulary(file)
    scores = file.need("tokenizer.ggml.scores", list)
    merges: list[tuple[float, str, str]] = []
    for token, i in vocabulary.items():
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        merges += [(scores[i], left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
    merges.sort(key=lambda merge: (-merge[0], vocabulary[merge[1]], vocabulary[merge[2]]))
    unknown = _spelling(file, "unknown")
    pairs = [(left, right) for _, left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    prefixed = file.fields.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefixed else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return tokenizer
