"""Our scheduler and sampler, failing inside a step where a request asks for it: how errors are provoked."""

from itertools import count
from typing import Any

from engine.vllm_internals.sampler import TwogearSampler
from engine.vllm_internals.scheduler import MultiStepScheduler
from tests.engine import FATAL_PRIORITY, LATE_POISON, POISON, SCHEDULE_PRIORITY


class FailingScheduler(MultiStepScheduler):
    """Raises when a request of SCHEDULE_PRIORITY is in a queue, and for FATAL_PRIORITY where results are handed out."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if any(request.priority == SCHEDULE_PRIORITY for request in (*self.running, *self.waiting)):
            raise RuntimeError("this request cannot be scheduled: /some/path")
        return super().schedule(*args, **kwargs)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().update_from_output(*args, **kwargs)
        if any(request.priority == FATAL_PRIORITY for request in self.requests.values()):
            raise RuntimeError("this request breaks the engine")
        return outputs


_late = count()
_sample = TwogearSampler.sample


def _failing_sample(self: TwogearSampler, logits: Any, metadata: Any, *args: Any, **kwargs: Any) -> Any:
    if metadata.temperature is not None:
        found = {
            temperature
            for temperature in (POISON, LATE_POISON)
            if (metadata.temperature - temperature).abs().min() < 1e-4
        }
        if POISON in found or (LATE_POISON in found and next(_late) >= 5):
            raise RuntimeError("this request cannot be drawn: /some/path")
    return _sample(self, logits, metadata, *args, **kwargs)


TwogearSampler.sample = _failing_sample  # type: ignore[assignment, method-assign]
