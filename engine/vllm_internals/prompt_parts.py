"""Long prompts in parts, so that a short request does not wait for all of one; for both of our schedulers.

Of a long prompt beside others, a step reads a part that fits into a time at the speed of the last steps with prompts,
but not too few tokens; several share it with one that may come. With vLLM's own limits, what runs is served first, and
whoever comes waits until the whole prompt is read. Short prompts are not parted: read together they cost less.

A step's time is from when it was scheduled, or the step before it was done, to when its own tokens are there. So it is
right where steps are scheduled ahead, and where several processes compute one behind another.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from model_impl.private_names import Verdict

_LONGER_ALONE = 8
"""How many times longer a step may take while nobody else is there: whoever comes waits for its end."""
_LAST_READ = 8
"""How many of the last steps with prompts tell how long a token takes in them."""


class _Begun(NamedTuple):
    """A step with a prompt's tokens among its own, and when it was scheduled."""

    output: SchedulerOutput
    at: float


class _Read(NamedTuple):
    """The tokens of a step that had a prompt's among them, and its seconds."""

    tokens: int
    seconds: float


def seconds_of(switch: str) -> float:
    """The environment variable's value in seconds; 0 where it is not set.

    Raises ValueError, naming it, for what is not a number of milliseconds.
    """
    text = os.environ.get(switch, "0")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{switch} must be a number of milliseconds, 0 for whole prompts; it is {text!r}")
    return value / 1000


class PromptParts:
    """How much of a prompt a scheduler's next step may read, by what the last ones took.

    `seconds`: how long a step with a part may take beside others. `least`: a part's tokens, whatever they take; with
    fewer, what a step costs in any case (reading the weights above all) costs more than they do.
    """

    def __init__(self, scheduler: Scheduler, seconds: float, least: int) -> None:
        self._scheduler = scheduler
        self._seconds, self._least = seconds, least
        self._begun: deque[_Begun] = deque()
        self._read: deque[_Read] = deque(maxlen=_LAST_READ)
        self._last_done = 0.0

    def schedule(self, schedule: Callable[[bool], SchedulerOutput], throttle_prefills: bool) -> SchedulerOutput:
        """A step of the scheduler's own `schedule`, within our limits."""
        at = time.monotonic()
        with self._limits():
            output = schedule(throttle_prefills)
        if output.total_num_scheduled_tokens > len(output.num_scheduled_tokens):
            self._begun.append(_Begun(output, at))
        return output

    def done(self, output: SchedulerOutput) -> None:
        """Called when a step's tokens are there, for every step, in their order. One that failed is left out."""
        now = time.monotonic()
        if any(one.output is output for one in self._begun):
            while (begun := self._begun.popleft()).output is not output:
                pass
            seconds = now - max(begun.at, self._last_done)
            self._read.append(_Read(output.total_num_scheduled_tokens, seconds))
        self._last_done = now

    @contextmanager
    def _limits(self) -> Iterator[None]:
        """Sets vLLM's limits for one step: of a prompt's tokens, or of all tokens where one request is alone."""
        scheduler = self._scheduler
        config = scheduler.scheduler_config
        limits = scheduler.max_num_scheduled_tokens, config.long_prefill_token_threshold
        tokens, seconds = sum(one.tokens for one in self._read), sum(one.seconds for one in self._read)
        fitting = int(self._seconds * tokens / seconds) if seconds else 0
        if sum(scheduler.get_request_counts()) == 1:
            scheduler.max_num_scheduled_tokens = min(limits[0], _LONGER_ALONE * max(fitting, self._least))
        else:
            reading = sum(map(_reads, scheduler.running))
            room = limits[0] - (len(scheduler.running) - reading)
            part = max(min(max(fitting // (reading + 1), self._least), room // (reading + 1)), 1)
            config.long_prefill_token_threshold = min(limits[1] or part, part)
        try:
            yield
        finally:
            scheduler.max_num_scheduled_tokens, config.long_prefill_token_threshold = limits


def parts_of(scheduler: Scheduler, switch: str, least: int) -> tuple[PromptParts | None, Verdict]:
    """For a scheduler whose steps may take as long as an environment variable says; None where prompts are read whole.

    Raises ValueError for a variable that is no number of milliseconds.
    """
    seconds = seconds_of(switch)
    whole = f"{switch} is 0" if seconds == 0 else _why_whole(scheduler)
    if whole is not None:
        return None, Verdict(False, whole)
    reason = f"a long prompt's part takes {seconds * 1000:g} ms beside others, and has {least} tokens or more"
    return PromptParts(scheduler, seconds, least), Verdict(True, reason)


def _why_whole(scheduler: Scheduler) -> str | None:
    """What of the engine's configuration may need a prompt, or an image or a page of states in it, in one step."""
    if not scheduler.scheduler_config.enable_chunked_prefill:
        return "prompts are not to be chunked"  # vLLM schedules none that is longer than a step's limit
    if scheduler.vllm_config.model_config.is_multimodal_model:
        return "the model takes images or sound"
    if scheduler.need_mamba_block_aligned_split:
        return "pages of states are read whole"
    return None


def _reads(request: Request) -> bool:
    """Whether more than its last token is yet to be computed."""
    return request.num_tokens > request.num_computed_tokens + 1
