"""vLLM's engine as our server runs it, without a server: `python -m benchmarks.load.bare_engine`, a Job on stdin.

It has the same defaults, model class, sampling and loop as the engine process (`engine/`). All requests are handed over
at once, in this process, as token ids. The difference to a server is the cost of HTTP, of text, and of the way between
two processes. The loads of a job are lists of requests (`prompt_ids`, `sampling`). The requests under `warm_up` run
before a load and are not measured. Writes the seconds and output tokens of each load to stdout.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from engine.defaults import engine_defaults, use_environment
from engine.messages import Failed, FromEngine, Generate, Sampling, Shutdown, Step, ToEngine

if TYPE_CHECKING:
    from engine.transport import Connection


class _Handover:
    """Replaces the connection to a front end: hands over all requests at once, and Shutdown when all are done."""

    def __init__(self, requests: Sequence[Generate]) -> None:
        self._waiting: list[ToEngine] = list(requests)
        self._unfinished = len(requests)
        self.tokens = 0

    def receive(self, timeout: float | None) -> list[ToEngine]:  # noqa: ARG002 - never has to wait
        if self._unfinished == 0:
            return [Shutdown()]
        waiting, self._waiting = self._waiting, []
        return waiting

    def send(self, message: FromEngine) -> None:
        match message:
            case Step(deltas):
                self.tokens += sum(len(delta.token_ids) for delta in deltas)
                self._unfinished -= sum(delta.finish is not None for delta in deltas)
            case Failed(text):
                raise RuntimeError(text)


def main() -> None:
    """Loads the engine and runs the job."""
    job = json.load(sys.stdin)
    output = os.dup(1)
    os.dup2(2, 1)  # what vLLM prints is no result
    defaults = engine_defaults(job["checkpoint"])
    use_environment(defaults)
    from engine.loading import load_engine  # noqa: PLC0415 - imports vLLM, which reads the environment

    engine = load_engine(job["checkpoint"], [], defaults, lambda _stage, _fraction: None)
    results = []
    for load in job["loads"]:
        _run(engine, load["warm_up"])
        results.append(_run(engine, load["requests"]))
    with os.fdopen(output, "w") as stdout:
        json.dump(results, stdout)
    sys.stderr.flush()
    os._exit(0)  # as the engine process does: unloading torch takes seconds


def _run(engine: Any, load: Sequence[dict[str, Any]]) -> dict[str, float]:
    from engine.loading import eos_token_ids  # noqa: PLC0415
    from engine.loop import EngineLoop  # noqa: PLC0415
    from engine.vllm_internals.attach import attach  # noqa: PLC0415

    requests = [
        Generate(f"bare-{number}", request["prompt_ids"], Sampling(**request["sampling"]))
        for number, request in enumerate(load)
    ]
    handover = _Handover(requests)
    started = time.perf_counter()
    EngineLoop(engine, attach(engine), eos_token_ids(engine), cast("Connection", handover)).run()
    return {"seconds": time.perf_counter() - started, "tokens": handover.tokens}


if __name__ == "__main__":
    main()
