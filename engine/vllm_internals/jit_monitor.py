"""vLLM's monitor of kernels that are compiled late, each of which a user may want to be an error.

vLLM turns it on where its own warm-up ends. Our requests before Ready come after that, and are there to have kernels
compiled: until Ready it only tells of them.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def only_told(config: Any) -> Iterator[None]:
    """Within it, workers that are made by this VllmConfig tell of compilations, whatever it says."""
    options = config.observability_config
    asked, options.jit_monitor_mode = options.jit_monitor_mode, "warn"
    try:
        yield
    finally:
        options.jit_monitor_mode = asked


def as_asked(engine: Any) -> None:
    """From now on the workers of vLLM's LLMEngine do with compilations what its options say."""
    if engine.vllm_config.observability_config.jit_monitor_mode == "error":
        engine.collective_rpc(_raise)


def _raise(worker: Any) -> None:  # noqa: ARG001 - vLLM's signature
    """Runs in every worker."""
    monitor: Any = importlib.import_module("vllm.utils.jit_monitor")
    monitor._mode = "error"
