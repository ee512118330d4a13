"""An executor for servers as they are: `--distributed-executor-backend benchmarks.host.paced.PacedExecutor`.

A step takes as long as the variable TWOGEAR_HOST_STEP_MS says, as on a GPU that is never faster, and draws words of the
large checkpoint. Whoever imports it has vLLM's asynchronous scheduling on a CPU too.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from vllm.platforms import current_platform

from benchmarks.host.fake_engine import AnsweringExecutor, done_when

STEP_MS = "TWOGEAR_HOST_STEP_MS"
_FIRST, _WORDS = 5000, 90_000
"""Of the vocabulary: ids of whole words."""


class PacedExecutor(AnsweringExecutor):
    """Has the tokens of a step so many milliseconds after those of the one before, or after it was asked."""

    def _init_executor(self) -> None:
        super()._init_executor()
        self._seconds = float(os.environ.get(STEP_MS, "0")) / 1000
        self._end = 0.0
        self._drawn = 0

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        """As any executor's."""
        self._end = end = max(self._end, time.monotonic()) + self._seconds
        output = super().sample_tokens(grammar_output)

        def wait() -> Any:
            time.sleep(max(0.0, end - time.monotonic()))
            return output

        return done_when(wait) if non_block else wait()

    def _token(self) -> int:
        self._drawn += 1
        return _FIRST + self._drawn * 7919 % _WORDS


def _keep_asynchronous(check: Callable[[Any], None]) -> Callable[[Any], None]:
    def checked(config: Any) -> None:
        check(config)
        config.scheduler_config.async_scheduling = True

    return checked


type(current_platform).check_and_update_config = staticmethod(  # type: ignore[method-assign, assignment]
    _keep_asynchronous(current_platform.check_and_update_config)
)
