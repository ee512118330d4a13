"""What training takes of each process's memory where FSDP2 shards the model: `python -m training.footprint CONFIG`.

Arithmetic from a model's shapes alone, for the way that training/ranks.py and training/optimizer.py go: float32 weights
and gradients, Muon's momentum for the layers' matrices, AdamW's two moments for the rest. A test compares it with what
processes hold. Not in it: what the allocator and the communication keep, and what checks and needle tests take.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Exaone4Config, Exaone4ForCausalLM

from model_impl.exaone4.architecture import Architecture
from training.optimizer import is_matrix

_FLOAT, _SHORT = 4, 2
_LAYERS_AT_ONCE = 2
"""The one that computes, and the next, which is fetched meanwhile."""


@dataclass(frozen=True)
class Footprint:
    """Bytes in the process that holds most: what stays, and what a backward pass and a step need beside it.

    `gathered`: whole weights of the layers at work and the whole gradients of one, the embedding's too. `inputs`: of
    all layers, which gradient checkpointing keeps, of the last norm and of the head. `logits`: of the learnt tokens and
    their gradient. `working`: an estimate of what one layer computes again and keeps for its own way back, with
    attention that keeps no scores. `directions`: the matrices that this process makes orthogonal, whole, and one more.
    """

    weights: int
    gradients: int
    states: int
    gathered: int
    inputs: int
    logits: int
    working: int
    directions: int

    @property
    def stays(self) -> int:
        """Between steps, and gradients."""
        return self.weights + self.gradients + self.states

    @property
    def peak(self) -> int:
        """The backward pass or the step, whichever needs more."""
        return self.stays + max(self.gathered + self.inputs + self.logits + self.working, self.directions)


def read_config(path: Path) -> Exaone4Config:
    """A model's config.json, its layers spelt out: the makers write `LLLG`, which transformers cannot read."""
    fields = json.loads(path.read_text())
    fields["layer_types"] = list(Architecture.from_config(fields).layer_types)
    fields.pop("sliding_window_pattern", None)
    return Exaone4Config(**fields)


def shapes(config: Exaone4Config) -> dict[str, torch.Size]:
    """Of the model's parameters, without making any."""
    with torch.device("meta"):
        model = Exaone4ForCausalLM._from_config(config)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def footprint(
    config: Exaone4Config, processes: int, *, tokens: int, learnt: int, context_processes: int = 1
) -> Footprint:
    """Of each of `processes`, which learns `tokens` tokens of a step at once, `learnt` of them with logits.

    With `context_processes` so many would share each sequence: a plan, which nothing here does yet.
    """
    own, learnt = -(-tokens // context_processes), -(-learnt // context_processes)
    all_shapes = shapes(config)
    sharded = {name: -(-size[0] // processes) * size[1:].numel() for name, size in all_shapes.items()}
    matrices = [name for name, size in all_shapes.items() if is_matrix(name, len(size))]
    adam = [name for name in all_shapes if name not in matrices]
    weights = sum(sharded.values())
    layer = sum(size.numel() for name, size in all_shapes.items() if ".layers.0." in name)
    root = sum(size.numel() for name, size in all_shapes.items() if ".layers." not in name)
    whole = [all_shapes[name].numel() for name in matrices]
    return Footprint(
        weights=_FLOAT * weights,
        gradients=_FLOAT * weights,
        states=_FLOAT * (sum(sharded[name] for name in matrices) + 2 * sum(sharded[name] for name in adam)),
        gathered=_FLOAT * ((_LAYERS_AT_ONCE + 1) * layer + 2 * root),
        inputs=_FLOAT * own * config.hidden_size * (config.num_hidden_layers + 2),
        logits=2 * _FLOAT * learnt * config.vocab_size,
        working=own * _working(config),
        directions=_FLOAT * (max(sum(whole[rank::processes]) for rank in range(processes)) + max(whole)),
    )


def _working(config: Exaone4Config) -> int:
    """Bytes for each token of one layer: products' inputs and outputs in bf16, the residual stream's in float32."""
    heads: int = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    width: int = config.hidden_size
    inner: int = config.intermediate_size
    return _SHORT * (3 * heads + 4 * inner + 4 * width) + 3 * _FLOAT * width


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a model's config.json")
    parser.add_argument("--processes", type=int, nargs="+", default=[8, 16, 64, 128])
    parser.add_argument("--tokens", type=int, default=8192, help="of a process, at once")
    parser.add_argument("--learnt", type=int, default=1024, help="of these, with logits")
    parser.add_argument("--context-processes", type=int, default=1, help="that would share a sequence; a plan only")
    args = parser.parse_args(arguments)
    config = read_config(args.config)
    names = ("processes", *Footprint.__dataclass_fields__, "peak")
    print(" | ".join(names))
    for processes in args.processes:
        found = footprint(
            config, processes, tokens=args.tokens, learnt=args.learnt, context_processes=args.context_processes
        )
        print(" | ".join([str(processes), *(f"{getattr(found, name) / 2**30:.2f}" for name in names[1:])]))


if __name__ == "__main__":
    main()
