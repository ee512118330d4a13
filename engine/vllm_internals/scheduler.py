"""Rounds of a bounded time: several decode steps for one round of scheduling, beside prompts in parts.

As many decode steps are scheduled at once as fit into TWOGEAR_MULTI_STEP_MS at the speed of the last ones, since
scheduling may cost more than a step. So large models step singly. `model_runner.py` computes the steps; nothing is
scheduled for it before it has confirmed that it can (`attach.py`). What a request drew beyond its end is dropped by
vLLM's own check for stops. A part of a long prompt may take as long (`prompt_parts.py`). Chosen with
`--scheduler-cls`.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

from vllm import envs
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from engine.messages import HELD_TOKENS
from engine.vllm_internals.kv_cache_manager import PageRoomManager
from engine.vllm_internals.prompt_parts import parts_of, seconds_of
from model_impl.private_names import Verdict

SWITCH = "TWOGEAR_MULTI_STEP_MS"
"""The environment variable for how long the steps of one round may take, in milliseconds; 0 for vLLM's own schedule."""

_MOST_STEPS = 32
_FEW = 4
"""Where no more requests run, or a newcomer goes before others, the round after a prompt's is a single step: a first
token may bring no text to show (it opens a call, or is a part of a character), and the second would come with all
others of its round. Where all hold their first tokens, there is no such haste."""
_LEAST_PART = 128
"""Tokens of a part of a prompt."""


class MultiStepScheduler(Scheduler):
    """vLLM's scheduler, with several steps at once where all that is scheduled are single tokens of unguided requests.

    Schedules single steps until `enable_multi_step` is called. Long prompts are parted from the start, also where it
    never is, unless the model may have to read images or pages of states whole.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wanted = seconds_of(SWITCH)
        self._longest = 0.0  # of several steps, in seconds
        self._step_seconds = math.inf
        self._started = 0.0
        self._steps = 0  # that are being computed at once; 0 where not only decoding goes on
        self._parts, self.prompts_in_parts = parts_of(self, SWITCH, _LEAST_PART)

    def enable_multi_step(self) -> Verdict:
        """Called once the workers have confirmed that they compute them; says whether they will be asked to."""
        obstacle = next(self._obstacles(), None)
        if obstacle is not None:
            return Verdict(False, obstacle)
        PageRoomManager.take_over(self.kv_cache_manager)
        self._longest = self._wanted
        return Verdict(True, f"up to {_MOST_STEPS} steps within {self._wanted * 1000:g} ms")

    def _obstacles(self) -> Iterator[str]:
        """What of the engine's configuration `engine.vllm_internals.model_runner` does not know how to drive."""
        config = self.vllm_config
        specs = [group.kv_cache_spec for group in self.kv_cache_config.kv_cache_groups]
        obstacles = {
            f"{SWITCH} is 0": self._wanted == 0,
            "the model is spread over several processes": config.parallel_config.world_size > 1,
            "speculative decoding is on": config.speculative_config is not None,
            "scheduling is asynchronous": self.scheduler_config.async_scheduling,
            "pages are transferred between engines": self.connector is not None or self.ec_connector is not None,
            "the model takes images or sound": config.model_config.is_multimodal_model,
            "prompts may be embeddings": config.model_config.enable_prompt_embeds,
            "the model does not generate": config.model_config.runner_type != "generate",
            "VLLM_COMPUTE_NANS_IN_LOGITS is on": envs.VLLM_COMPUTE_NANS_IN_LOGITS,
            "some layers keep other than keys and values": any(
                type(spec) not in {FullAttentionSpec, SlidingWindowSpec} for spec in specs
            ),
        }
        return (reason for reason, holds in obstacles.items() if holds)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """As vLLM's; with several steps, every request has the same number of placeholders behind its next token."""
        self._steps = self._next_steps()
        if self._steps > 1:
            for request in self.running:
                request.spec_token_ids = [-1] * (self._steps - 1)
        self._started = time.monotonic()
        if self._steps or self._parts is None:
            return super().schedule(throttle_prefills)
        return self._parts.schedule(super().schedule, throttle_prefills)

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """As vLLM's; notes how long a step takes. There may have been fewer than were scheduled."""
        if self._steps:
            steps = max(map(len, model_runner_output.sampled_token_ids), default=0)
            self._step_seconds = (time.monotonic() - self._started) / max(steps, 1)
        if self._parts is not None:
            self._parts.done(scheduler_output)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _next_steps(self) -> int:
        """How many steps to schedule at once; 0 where what is next is not only decoding."""
        follows_prompts = self._steps == 0
        if self.pause_state is not PauseState.UNPAUSED:
            return 0
        waits = self.get_request_counts()[1] > 0
        has_room = len(self.running) < self.max_num_running_reqs
        if not self.running or (waits and has_room) or not all(map(_decodes, self.running)):
            return 0
        held = [left for request in self.running if (left := _held_tokens(request)) > 0]
        is_first_shown = len(held) < len(self.running)
        if follows_prompts and is_first_shown and (len(self.running) <= _FEW or self._first_token_goes_before()):
            return 1
        steps = min(
            *held,
            int(self._longest / self._step_seconds),
            _MOST_STEPS,
            max(request.max_tokens - request.num_output_tokens for request in self.running),
            self.max_model_len - max(request.num_tokens for request in self.running),
            self.max_num_scheduled_tokens // len(self.running),
        )
        return steps if steps > 1 and self._has_pages(steps) else 1

    def _first_token_goes_before(self) -> bool:
        """Whether one that has just drawn its first token goes before others that run."""
        last = max(request.priority for request in self.running)
        return any(request.num_output_tokens == 1 and request.priority < last for request in self.running)

    def _has_pages(self, steps: int) -> bool:
        """Whether every request can be given the pages for so many tokens without ending another."""
        managers = self.kv_cache_manager.coordinator.single_type_managers
        pages = sum(steps // manager.block_size + 1 for manager in managers)
        return self.kv_cache_manager.block_pool.get_num_free_blocks() >= pages * len(self.running)


def _held_tokens(request: Request) -> int:
    """How many more of its tokens show nothing until they are all there."""
    params = request.sampling_params
    held = (params.extra_args or {}).get(HELD_TOKENS, 0) if params is not None else 0
    return int(held) - request.num_output_tokens


def _decodes(request: Request) -> bool:
    return request.num_tokens == request.num_computed_tokens + 1 and not request.use_structured_output
