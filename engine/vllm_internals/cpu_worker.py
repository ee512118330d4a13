"""vLLM's CPU worker with our sampler, our model runner, and buffers that take memory as they fill.

Each of these is taken only where vLLM has what it needs (`contract.py`); `fast_paths` says what became of each. Chosen
with the engine option `--worker-cls`.
"""

import importlib
from contextlib import AbstractContextManager
from typing import Any, cast

from vllm.v1.worker.cpu_worker import CPUWorker

from engine.heap import return_free_memory
from engine.vllm_internals.contract import ADAPTERS, CPU_RUNNER, DEMAND_ZERO, MULTI_STEP, SAMPLER, SEEDS, TIED_HEADS
from model_impl import cpu
from model_impl.cpu.demand_zero import SMALLEST, DemandZero
from model_impl.private_names import FastPath, Verdict, verdict_of_names

_RUNNER_PARTS = {
    SEEDS.name: ("engine.vllm_internals.seeded_runner", "SeededRunner"),
    MULTI_STEP.name: ("engine.vllm_internals.model_runner", "MultiStepCPUModelRunner"),
}
"""By path: module and class, which is imported where the path is taken."""


class TwogearCPUWorker(CPUWorker):
    """vLLM's worker, in each process of a parallel model."""

    def init_device(self) -> None:
        """Makes the runner; vLLM offers no way to name its class and its sampler's, so finished ones are given ours."""
        cpu.forget_verdicts()
        cpu.use_kernels_for_ready_made(self.vllm_config)
        with DemandZero():
            super().init_device()  # type: ignore[no-untyped-call]
        self._zeros: DemandZero | None = None
        self._taken = take_over(self.model_runner)

    def fast_paths(self) -> dict[str, Verdict]:
        """By name, what became of each path that a worker takes."""
        told = {path.name: _verdict(path) for path in (TIED_HEADS, ADAPTERS)}
        return self._taken | told | {DEMAND_ZERO.name: self._demand_zero()}

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """With adapters enabled, they are computed by our class. Raises RuntimeError where they cannot be."""
        super().load_model(*args, **kwargs)
        return_free_memory()
        if self.vllm_config.lora_config is None:
            return
        if not (verdict := _verdict(ADAPTERS)).on:
            raise RuntimeError(f"adapters cannot be kept apart on a CPU with this vLLM: {verdict.reason}")
        kernels = importlib.import_module("engine.vllm_internals.adapter_kernels").AdapterKernels
        kernels.take_over(cast("Any", self.model_runner).lora_manager)

    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager[Any]:
        """Where vLLM allocates; its own sleep mode, the other user of this, is not there for CPUs."""
        if tag == "kv_cache":
            self._zeros = DemandZero()
            return self._zeros
        return super()._maybe_get_memory_pool_context(tag)

    def _demand_zero(self) -> Verdict:
        verdict = _verdict(DEMAND_ZERO)
        if not verdict.on:
            return verdict
        if self._zeros is None:
            return Verdict(False, "vLLM did not ask where to allocate the KV cache", unexpected=True)
        if self._zeros.size == 0:
            return Verdict(False, f"vLLM asked for no {SMALLEST >> 20} MiB of zeros in one piece", unexpected=True)
        return verdict

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Other weights; vLLM would go on with the old ones in an output head that is tied to the input embedding."""
        super().reload_weights(*args, **kwargs)
        return_free_memory()
        if not _verdict(TIED_HEADS).on:
            return
        embedding = importlib.import_module("vllm.model_executor.layers.vocab_parallel_embedding")
        head: Any = getattr(self.model_runner.get_model(), "lm_head", None)
        if isinstance(method := getattr(head, "quant_method", None), embedding.UnquantizedEmbeddingMethod):
            method.process_weights_after_loading(head)


def take_over(runner: Any) -> dict[str, Verdict]:
    """Gives a finished runner of vLLM's, and its sampler, our classes where they fit; says what became of each path."""
    made = f"{type(runner).__module__}:{type(runner).__qualname__}"
    if made != CPU_RUNNER:
        other = Verdict(False, f"the worker has made a {made.replace(':', '.')}", unexpected=True)
        return dict.fromkeys((SAMPLER.name, SEEDS.name, MULTI_STEP.name), other)
    verdicts = {path.name: _verdict(path) for path in (SAMPLER, SEEDS, MULTI_STEP)}
    parts = [
        getattr(importlib.import_module(module), name)
        for path, (module, name) in _RUNNER_PARTS.items()
        if verdicts[path].on
    ]
    runner.__class__ = type("TwogearCPUModelRunner", (*parts, type(runner)), {"__module__": __name__})
    if verdicts[SAMPLER.name].on:
        importlib.import_module("engine.vllm_internals.sampler").TwogearSampler.take_over(runner.sampler)
    return verdicts


def _verdict(path: FastPath) -> Verdict:
    return verdict_of_names(path) or Verdict(True, "vLLM has all that it needs")
