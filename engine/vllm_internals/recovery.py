"""Takes vLLM's engine back to a state to go on from, after an exception inside a step.

A step that fails has advanced its requests already: their counts say computed, their new pages may be in the prefix
cache, and nothing of it was computed. So all requests that ran are preempted, the prefix cache is emptied (both as
vLLM does it when weights change), and what waits for a result that will not come is cleared. They then wait, and are
computed again from the tokens that they have.
"""

import traceback
from collections.abc import Iterable
from typing import Any

from vllm.v1.request import Request, RequestStatus

_BEFORE_RESULTS = frozenset({"schedule", "execute_model", "sample_tokens", "get_grammar_bitmask"})
"""Functions of a step that come before any request has been given its new tokens: from an exception in one of them no
token is lost.
"""


class Recovery:
    """For one engine. `core`: its EngineCore, in this process. Requests are named by vLLM's own ids."""

    def __init__(self, engine: Any, core: Any) -> None:
        self._engine = engine
        self._core = core
        self._scheduler = core.scheduler
        self.obstacle = self._obstacle()
        """Why this engine cannot be taken back; None where it can."""

    def _obstacle(self) -> str | None:
        if self._scheduler.scheduler_config.async_scheduling or self._core.batch_queue is not None:
            return "steps are scheduled before the last one's tokens are known"
        if self._engine.vllm_config.parallel_config.world_size > 1:
            return "the model is spread over several processes"
        if self._scheduler.connector is not None or self._scheduler.ec_connector is not None:
            return "pages are transferred between engines"
        return None

    def can_recover(self, error: Exception) -> bool:
        """Whether the engine can be taken back after this exception of a step."""
        names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        is_lost = "CUDA error" in str(error)  # the device's context is gone with it
        return self.obstacle is None and bool(names & _BEFORE_RESULTS) and not is_lost

    def recover(self, error: Exception) -> list[str]:
        """Parks all requests, to be computed again once released; those that may be to blame."""
        scheduler = self._scheduler
        names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        was_computing = "execute_model" in names or "sample_tokens" in names
        suspects = [request.request_id for request in (scheduler.running if was_computing else self._requests())]
        (known,) = self._engine.collective_rpc(_forget_step)
        self._gather_lost()
        self._free_waiting()
        self._engine.reset_prefix_cache(reset_running_requests=True)
        for request in self._requests():
            request.num_in_flight_tokens = request.num_stale_output_tokens = 0
            request.drop_stale_output = False
            if request.status == RequestStatus.PREEMPTED and known.get(request.request_id) != request.num_prompt_tokens:
                request.status = RequestStatus.WAITING  # the worker has not heard of it, or not of its second part
        scheduler.finished_req_ids |= known.keys() - scheduler.requests.keys()
        for queue in (scheduler.waiting, scheduler.kv_holding_waiting):
            queue.remove_requests(self._requests())
        return suspects

    def release(self, request_ids: Iterable[str]) -> None:
        """Has parked requests wait for their next step; ids that have ended meanwhile are passed over."""
        for request_id in request_ids:
            request = self._scheduler.requests.get(request_id)
            if request is not None:
                self._scheduler._enqueue_waiting_request(request)

    def parked(self) -> list[str]:
        """All requests that are in no queue, in the order of their arrival."""
        scheduler = self._scheduler
        queued = {*scheduler.running, *scheduler.waiting, *scheduler.kv_holding_waiting}
        return [request.request_id for request in self._requests() if request not in queued]

    def _requests(self) -> list[Request]:
        return list(self._scheduler.requests.values())

    def _gather_lost(self) -> None:
        """A request that was on its way from one queue to another counts as running."""
        for request_id in self.parked():
            request = self._scheduler.requests[request_id]
            request.status = RequestStatus.RUNNING
            self._scheduler.running.append(request)

    def _free_waiting(self) -> None:
        """Those that hold pages while they wait give them up, as their pages may be the failed step's."""
        for request in list(self._scheduler.kv_holding_waiting):
            self._scheduler.kv_cache_manager.free(request)
            request.num_computed_tokens = 0


def _forget_step(worker: Any) -> dict[str, int]:
    """Runs in this process, with vLLM's worker or what wraps it: the lengths of the prompts that its runner knows."""
    runner = getattr(worker, "worker", worker).model_runner
    runner.execute_model_state = None
    return {request_id: state.num_prompt_tokens for request_id, state in runner.requests.items()}
