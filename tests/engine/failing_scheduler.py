"""Our scheduler, failing inside a step when a request asks for it: how an error of the engine's own is provoked."""

from typing import Any

from engine.vllm_internals.scheduler import MultiStepScheduler
from tests.engine import FATAL_PRIORITY


class FailingScheduler(MultiStepScheduler):
    """Raises in the step after a request of FATAL_PRIORITY came in."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if any(request.priority == FATAL_PRIORITY for request in self.requests.values()):
            raise RuntimeError("this request breaks the engine")
        return super().schedule(*args, **kwargs)
