"""Sampling parameters go to the GPU with the request that brings them, and not again in every step.

vLLM's V2 runner keeps them in some fifteen arrays with a place for each request that may run, and copies all of these
to where the GPU reads them in every step. They change where a request is added, and nowhere else.
"""

import os
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
from vllm.v1.worker.gpu.sample.penalties import PenaltiesState
from vllm.v1.worker.gpu.sample.sampler import Sampler

SWITCH = "TWOGEAR_FEWER_COPIES"
"""The environment variable that turns it off: 0."""
_KNOWN = {BadWordsState, LogitBiasState, PenaltiesState}
"""Processors that write what is to be copied where a request is added; one of a user's may do so in any step."""


class FewerCopiesSampler(Sampler):
    """vLLM's sampler, which copies in the first step after a request was added."""

    _has_news = True

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        """As vLLM's."""
        self._has_news = True
        super().add_request(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """As vLLM's, which does it in every step."""
        if self._has_news:
            super().apply_staged_writes()
            self._has_news = False


def take_over(worker: Any) -> str | None:
    """Runs in a worker process, with vLLM's worker or what wraps it: why its sampler stays vLLM's; None where it is
    ours, or where another process draws.
    """
    if os.environ.get(SWITCH, "1") == "0":
        return f"{SWITCH} is 0"
    runner: Any = getattr(getattr(worker, "worker", worker), "model_runner", None)
    if runner is None:
        return "the worker has no model runner"
    sampler = runner.sampler
    if sampler is None or type(sampler) is FewerCopiesSampler:
        return None
    if type(sampler) is not Sampler:
        return f"the worker draws with {_name(sampler)}"
    others = [_name(one) for one in sampler.logits_processors if type(one) not in _KNOWN]
    if others:
        return f"logits are changed by {', '.join(others)}"
    sampler.__class__ = FewerCopiesSampler
    return None


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
