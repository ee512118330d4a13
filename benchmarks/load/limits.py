"""The least time that a load can take, from the model's shape and the machine's measured rates (a roofline).

A step has to read each weight that it uses, and the KV cache of its requests, once. It has to do two operations for
each weight and token. The longer of the two times is the limit. Small models may beat the first: their weights stay in
the processor's caches.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.machine import Machine
from benchmarks.load.workload import Load

_BYTES = 2  # of a number in bf16


@dataclass(frozen=True)
class Shape:
    """A model's shape. `weights`: how many a token uses, those of the output layer included, the embedding's not.

    `kv_numbers`: how many one layer keeps for a token. `window`: of the sliding layers, in tokens.
    """

    weights: int
    output_weights: int
    attention_width: int
    kv_numbers: int
    sliding_layers: int
    global_layers: int
    window: int

    @classmethod
    def of(cls, checkpoint: Path) -> "Shape":
        """The shape of an Exaone4 checkpoint with `layer_types`."""
        config = json.loads((checkpoint / "config.json").read_text())
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        width = config["num_attention_heads"] * config["head_dim"]
        kv = 2 * config["num_key_value_heads"] * config["head_dim"]
        layer = hidden * (2 * width + kv) + 3 * hidden * config["intermediate_size"]
        output = hidden * config["vocab_size"]
        sliding = config["layer_types"].count("sliding_attention")
        return cls(layers * layer + output, output, width, kv, sliding, layers - sliding, config["sliding_window"])

    def seen(self, context: int) -> int:
        """How many positions one token attends to, summed over the layers."""
        return self.sliding_layers * min(context, self.window) + self.global_layers * context

    def prefill_operations(self, tokens: int) -> float:
        """The operations for a prompt. Only its last token goes through the output layer."""
        attention = sum(
            layers * (min(tokens, window) * (tokens - min(tokens, window) / 2))
            for layers, window in ((self.sliding_layers, self.window), (self.global_layers, tokens))
        )
        return (
            2.0 * tokens * (self.weights - self.output_weights)
            + 2.0 * self.output_weights
            + (4.0 * self.attention_width * attention)
        )


def step_seconds(shape: Shape, machine: Machine, rows: int, context: int) -> float:
    """The least time in which one token of each of `rows` requests can be generated."""
    read = _BYTES * (shape.weights + rows * shape.kv_numbers * shape.seen(context))
    operations = rows * (2.0 * shape.weights + 4.0 * shape.attention_width * shape.seen(context))
    return max(read / machine.read_bandwidth, operations / machine.bf16_matmul)


def prefill_seconds(shape: Shape, machine: Machine, tokens: int, prompts: int = 1) -> float:
    """The least time to the first tokens of so many prompts at once."""
    read = _BYTES * shape.weights
    return max(read / machine.read_bandwidth, prompts * shape.prefill_operations(tokens) / machine.bf16_matmul)


def tokens_per_second(shape: Shape, machine: Machine, load: Load) -> float:
    """The most that a load can reach if it first computes all prompts and then steps all streams at once."""
    waves = load.requests / load.streams
    context = load.prompt_tokens + load.output_tokens // 2
    prefill = prefill_seconds(shape, machine, load.prompt_tokens, load.streams)
    steps = (load.output_tokens - 1) * step_seconds(shape, machine, load.streams, context)
    return load.requests * load.output_tokens / (waves * (prefill + steps))
