"""vLLM's CPU worker with our sampler and bursts of steps, mended where a request with a seed would end the engine.

vLLM 0.32's runner also draws for rows whose prompt is not yet complete and takes the draw back with
`generator.set_offset`, which torch's CPU generators do not have (RuntimeError: CPU Generator does not use offset).
Here such a draw is taken back by restoring the generator's state. Reloaded weights reach a tied output head too. Chosen
with the engine option `--worker-cls`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from engine.vllm_internals.model_runner import BurstCPUModelRunner
from engine.vllm_internals.sampler import TwogearSampler
from model_impl.untouched_zeros import UntouchedZeros


class SeededCPUModelRunner(BurstCPUModelRunner):
    """Leaves the generators of incomplete prompts as they were before the draw that is thrown away."""

    def _incomplete(self) -> Iterator[tuple[int, torch.Generator]]:
        rows = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
        generators = self.input_batch.generators
        return ((row, generators[row]) for row in map(int, rows) if row in generators)

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        before = [(generator, generator.get_state()) for _, generator in self._incomplete()]
        output = super()._sample(*args, **kwargs)
        for generator, state in before:
            generator.set_state(state)
        return output

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        held = dict(self._incomplete())
        for row in held:
            del generators[row]
        try:
            return super()._bookkeeping_sync(*args, **kwargs)
        finally:
            generators.update(held)


class TwogearCPUWorker(CPUWorker):
    """vLLM's worker with that runner and our sampler, in each process of a parallel model."""

    def init_device(self) -> None:
        """Makes the runner; vLLM offers no way to name its class and its sampler's, so finished ones are given ours."""
        super().init_device()  # type: ignore[no-untyped-call]
        if type(self.model_runner) is CPUModelRunner:
            self.model_runner.__class__ = SeededCPUModelRunner
            TwogearSampler.take_over(self.model_runner.sampler)

    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager[Any]:
        """Where vLLM allocates; its own sleep mode, the other user of this, is not there for CPUs."""
        if tag == "kv_cache":
            return UntouchedZeros()
        return super()._maybe_get_memory_pool_context(tag)

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Other weights; vLLM would go on with the old ones in an output head that is tied to the input embedding."""
        super().reload_weights(*args, **kwargs)
        head: Any = getattr(self.model_runner.get_model(), "lm_head", None)
        if isinstance(method := getattr(head, "quant_method", None), UnquantizedEmbeddingMethod):
            method.process_weights_after_loading(head)
