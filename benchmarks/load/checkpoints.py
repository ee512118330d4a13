"""The models that are served: the embedded one, and `large`, which is made here with random weights.

Speed does not depend on the values of weights, so the large one needs no training. It has the width of EXAONE 4.0 1.2B
and the layers of the 32B: 1.35 billion parameters in bf16 (2.7 GB). It is kept in a cache outside the repository.
"""

import json
import os
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

from server.settings import EMBEDDED_MODEL

CONTROL_TOKENS = 15
"""The embedded tokenizer's, which the large one has too, under the same ids."""
_VOCABULARY = 102_400
_LAYERS = 32
LARGE_CONFIG: dict[str, Any] = {
    "architectures": ["Exaone4ForCausalLM"],
    "model_type": "exaone4",
    "dtype": "bfloat16",
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "vocab_size": _VOCABULARY,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * (_LAYERS // 4),
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SPLIT = r"[A-Z]+[a-z]*| ?[a-z]+|\p{N}| ?[^\sA-Za-z\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How the large one's tokenizer cuts text: as the usual ones do, with the space before a word."""
_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"


def cache_folder() -> Path:
    """The folder in which this machine keeps what the benchmarks have generated or downloaded."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twogear" / "bench"


def checkpoint(name: str) -> Path:
    """The folder of `embedded` or `large`; the latter is generated if it does not exist yet."""
    if name == "embedded":
        return EMBEDDED_MODEL
    folder = cache_folder() / "large"
    if not (folder / "config.json").exists():  # written last
        make_large(folder, LARGE_CONFIG)
    return folder


def make_large(folder: Path, config: dict[str, Any]) -> None:
    """Writes a checkpoint with random weights and a made-up tokenizer, in transformers' format."""
    import torch  # noqa: PLC0415 - seconds that other commands need not wait
    from safetensors.torch import save_file  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    weights = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)
        for name, shape in weight_shapes(config)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text(json.dumps(syllable_tokenizer(config["vocab_size"])))
    (folder / "tokenizer_config.json").write_bytes((EMBEDDED_MODEL / "tokenizer_config.json").read_bytes())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def weight_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of an Exaone4ForCausalLM with tied embeddings; those of one dimension are norms."""
    hidden, width = config["hidden_size"], config["intermediate_size"]
    head = config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        yield f"{start}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{start}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{start}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{start}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{start}.self_attn.q_norm.weight", (head,)
        yield f"{start}.self_attn.k_norm.weight", (head,)
        yield f"{start}.mlp.gate_proj.weight", (width, hidden)
        yield f"{start}.mlp.up_proj.weight", (width, hidden)
        yield f"{start}.mlp.down_proj.weight", (hidden, width)
        yield f"{start}.post_attention_layernorm.weight", (hidden,)
        yield f"{start}.post_feedforward_layernorm.weight", (hidden,)


def syllable_tokenizer(size: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer of `size` entries, as tokenizer.json has it: words of one to three syllables.

    A syllable is a consonant and a vowel. Merges join syllables only at the end of a word that begins with a space, so
    that every word is split in one way only. It has control tokens, and its tokens have a usual length, so it costs a
    server as much as a trained tokenizer of this size.
    """
    embedded = json.loads((EMBEDDED_MODEL / "tokenizer.json").read_text())
    controls = embedded["added_tokens"][:CONTROL_TOKENS]
    alphabet = [token for token in embedded["model"]["vocab"] if len(token) == 1]
    syllables = ["".join(pair) for pair in product(_CONSONANTS, _VOWELS)]
    merges = [[syllable[0], syllable[1]] for syllable in syllables]
    merges += [["Ġ", syllable] for syllable in syllables]
    merges += [["Ġ" + first, second] for first, second in product(syllables, repeat=2)]
    merges += [["Ġ" + first + second, third] for first, second, third in product(syllables, repeat=3)]
    merges = list(islice(merges, size - len(controls) - len(alphabet)))
    tokens = [token["content"] for token in controls] + alphabet + [left + right for left, right in merges]
    model = {**embedded["model"], "vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges}
    split, *others = embedded["pre_tokenizer"]["pretokenizers"]
    pre_tokenizer = {**embedded["pre_tokenizer"], "pretokenizers": [{**split, "pattern": {"Regex": _SPLIT}}, *others]}
    return {**embedded, "added_tokens": controls, "pre_tokenizer": pre_tokenizer, "model": model}
