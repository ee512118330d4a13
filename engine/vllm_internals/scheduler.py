"""Lets requests that only decode take several steps at once, where a step costs more around the model than in it.

A burst is as long as fits into TWOGEAR_BURST_MS at the speed of the last steps, so that large models step singly and
nobody's first token waits longer than that for others. `model_runner.py` computes it. What a request drew beyond its
end in a burst is dropped by vLLM's own check for stops. Chosen with the engine option `--scheduler-cls`.
"""

import math
import os
import time
from typing import Any

from vllm import envs
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.request import Request

from engine.vllm_internals.kv_cache_manager import PageRoomManager

SWITCH = "TWOGEAR_BURST_MS"
"""The environment variable for how long a burst may take, in milliseconds; 0 for single steps."""

_MOST_STEPS = 32


def longest_burst(milliseconds: str) -> float:
    """The variable's value in seconds. Raises ValueError, naming it, for what is not a number of milliseconds."""
    try:
        value = float(milliseconds)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{SWITCH} must be a number of milliseconds, 0 for single steps; it is {milliseconds!r}")
    return value / 1000


class BurstScheduler(Scheduler):
    """vLLM's scheduler, with bursts where all that is scheduled are single tokens of unguided requests."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        longest = longest_burst(os.environ.get(SWITCH, "0"))
        self._longest = 0.0  # seconds
        if self._is_plain():
            PageRoomManager.take_over(self.kv_cache_manager)
            self._longest = longest
        self._step_seconds = math.inf
        self._started = 0.0
        self._steps = 0  # of the burst that is being computed; 0 where a step is of another kind

    def _is_plain(self) -> bool:
        """Whether the engine is one that `engine.vllm_internals.model_runner` knows how to drive."""
        config = self.vllm_config
        specs = [group.kv_cache_spec for group in self.kv_cache_config.kv_cache_groups]
        return (
            config.parallel_config.world_size == 1
            and config.speculative_config is None
            and not self.scheduler_config.async_scheduling
            and self.connector is None
            and self.ec_connector is None
            and not config.model_config.is_multimodal_model
            and not config.model_config.enable_prompt_embeds
            and config.model_config.runner_type == "generate"
            and not envs.VLLM_COMPUTE_NANS_IN_LOGITS
            and all(type(spec) in {FullAttentionSpec, SlidingWindowSpec} for spec in specs)
        )

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """As vLLM's; in a burst every request has the same number of placeholders behind its next token."""
        self._steps = self._next_steps()
        if self._steps > 1:
            for request in self.running:
                request.spec_token_ids = [-1] * (self._steps - 1)
        self._started = time.monotonic()
        return super().schedule(throttle_prefills)

    def update_from_output(self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's; notes how long a step takes."""
        if self._steps:
            self._step_seconds = (time.monotonic() - self._started) / self._steps
        return super().update_from_output(scheduler_output, *args, **kwargs)

    def _next_steps(self) -> int:
        """How many steps the next burst has; 0 where what is next is not only decoding."""
        if self.pause_state is not PauseState.UNPAUSED:
            return 0
        waits = self.get_request_counts()[1] > 0
        has_room = len(self.running) < self.max_num_running_reqs
        if not self.running or (waits and has_room) or not all(map(_decodes, self.running)):
            return 0
        steps = min(
            int(self._longest / self._step_seconds),
            _MOST_STEPS,
            max(request.max_tokens - request.num_output_tokens for request in self.running),
            self.max_model_len - max(request.num_tokens for request in self.running),
            self.max_num_scheduled_tokens // len(self.running),
        )
        return steps if steps > 1 and self._has_pages(steps) else 1

    def _has_pages(self, steps: int) -> bool:
        """Whether every request can be given the pages for so many tokens without ending another."""
        managers = self.kv_cache_manager.coordinator.single_type_managers
        pages = sum(steps // manager.block_size + 1 for manager in managers)
        return self.kv_cache_manager.block_pool.get_num_free_blocks() >= pages * len(self.running)


def _decodes(request: Request) -> bool:
    return request.num_tokens == request.num_computed_tokens + 1 and not request.use_structured_output
