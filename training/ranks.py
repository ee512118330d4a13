"""Training by several processes, which `torchrun` starts: what they tell each other, and which part each has.

The model is sharded by FSDP2 (`torch.distributed.fsdp.fully_shard`): of every parameter, its gradient and the
optimizer's state each process has the rows that are its own. All processes draw the same batches and each learns a part
of every step, so a run is the same by any number of them, to rounding. Only the first one writes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Exaone4ForCausalLM

from server.cli_errors import UsageError
from training.batches import IGNORED, Batch
from training.fused_layer import learnt_logits
from training.recipe import ExtendStage, Stage

_PATIENCE = timedelta(days=1)
"""Of those that wait while the first tests or writes. Where one ends, torchrun ends the others at once."""
_TOLD_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_NOTHING = Batch("standard", torch.zeros(1, 8, dtype=torch.int64), torch.full((1, 8), IGNORED))

Told = TypeVar("Told")


@dataclass(frozen=True)
class Share:
    """What a process learns of a batch. Its mean loss times `weight`, in the mean over processes, is the batch's."""

    batch: Batch
    weight: float


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `size`, which do the same things in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes files and speaks."""
        return self.rank == 0

    def totals(self, *values: float) -> list[float]:
        """The sums over all processes."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(summed)
        return summed.tolist()

    def is_any(self, found: bool) -> bool:
        """Whether it is so in any process."""
        return self.totals(float(found))[0] > 0

    def from_first(self, value: Told) -> Told:
        """What the first process has."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told, src=0)
        return told[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()

    def shares(self, batches: Sequence[Batch]) -> list[Share]:
        """What this process learns of a step's batches; every process has as many shares, some of nothing.

        Rows are dealt out; or whole batches, where these have too few rows and there are enough of them.
        """
        if self.size == 1:
            return [Share(batch, 1.0) for batch in batches]
        if len(batches) < self.size or all(len(batch.ids) >= self.size for batch in batches):
            return [self._rows(batch) for batch in batches]
        dealt = [Share(batch, float(self.size)) for batch in batches[self.rank :: self.size]]
        most = -(-len(batches) // self.size)
        return dealt + [Share(_NOTHING, 0.0)] * (most - len(dealt))

    def _rows(self, batch: Batch) -> Share:
        if self.rank >= len(batch.ids):
            return Share(_NOTHING, 0.0)
        ids, labels = (one[self.rank :: self.size] for one in (batch.ids, batch.labels))
        counts = None if batch.counts is None else batch.counts[self.rank :: self.size]
        learnt, of = (int((one != IGNORED).sum()) for one in (labels, batch.labels))
        return Share(Batch(batch.mode, ids, labels, counts), self.size * learnt / of)

    def shard(self, model: Exaone4ForCausalLM, device: torch.device) -> None:
        """Leaves this process its part of the model, on its device; layers are gathered when they compute."""
        mesh = init_device_mesh(device.type, (self.size,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
        model.learnt_logits = MethodType(learnt_logits, model)  # type: ignore[assignment]  # a method is no part of it
        register_fsdp_forward_method(model, "learnt_logits")

    def gathered(self, state: Any) -> Any:
        """Dicts and lists with whole tensors on the CPU in place of sharded ones; others than the first keep none."""
        if isinstance(state, DTensor):
            whole = state.full_tensor()
            return whole.cpu() if self.is_first else None
        if isinstance(state, Mapping):
            return {name: self.gathered(one) for name, one in state.items()}
        return [self.gathered(one) for one in state] if isinstance(state, list) else state

    def check(self, stages: Sequence[Stage]) -> None:
        """Raises UsageError where a stage has no work for so many processes."""
        for stage in stages:
            if isinstance(stage, ExtendStage) and stage.batch_tokens // stage.length < self.size > 1:
                raise UsageError(
                    f"stage {stage.name}: a step has {stage.batch_tokens // stage.length} texts of {stage.length} "
                    f"tokens, too few for {self.size} processes, of which each takes whole texts; train it with fewer, "
                    f"or with batch_tokens = {stage.length * self.size}"
                )


def spread(like: torch.Tensor, whole: torch.Tensor | None) -> torch.Tensor:
    """A whole tensor, of which the first process's counts, sharded as `like` is; itself where that is not sharded."""
    if not isinstance(like, DTensor):
        assert whole is not None
        return whole
    given = torch.empty(like.shape) if whole is None else whole
    return distribute_tensor(given.to(like.device, like.dtype), like.device_mesh, like.placements)


def load(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Takes whole weights, those of the first process where there are several."""
    model.load_state_dict({name: spread(one, weights.get(name)) for name, one in model.state_dict().items()})


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started with this one, or this one alone; on GPUs each has its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    ranks = Ranks(distributed.get_rank(), size)
    for name in _TOLD_BY_TORCHRUN:
        os.environ.pop(name, None)  # an engine that is started from here is not of this group
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()
