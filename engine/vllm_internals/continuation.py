"""Lets a running request of vLLM go on behind tokens that were not drawn by it, its pages kept.

A request that is ended and added again finds its full pages in the prefix cache, but computes the rest of the last one
again, is checked, hashed and looked up anew: with 16 requests at once on two cores, a third of a step for all of them
each time. vLLM's own streaming input (`resumable` requests) keeps the pages. It does not fit as it is, since whether
there is a second part is not known beforehand: the first may end by itself. So what vLLM does to a request between two
inputs is done here.

Where the scheduler runs ahead, the next step of the request is under way when its budget is seen to be spent. What that
draws is dropped when it comes, as vLLM does between two inputs; what it writes is overwritten by the forced tokens.

With speculation, what was drafted behind the last token is dropped too. Where the scheduler runs ahead of drafts, pages
that hold accepted tokens beyond the budget may be in the prefix cache by then, so requests are ended and added again.
"""

import copy
from typing import Any

import msgspec
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus, StreamingUpdate

from engine.messages import Continuation, Sampling


class Extender:
    """Extends requests of one engine, where it can. `core`: its EngineCore, in this process."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._scheduler = core.scheduler
        manager = core.scheduler.kv_cache_manager
        self._pool = manager.block_pool
        self._page_sizes = [one.block_size for one in manager.coordinator.single_type_managers]
        self.obstacle = self._obstacle()
        """Why this engine's requests cannot be extended; None where they can."""

    def extend(self, request_id: str, sampling: Sampling, then: Continuation) -> bool:
        """Has vLLM's request of that id, drawn by `sampling`, go on as `then` says in the next step.

        False, and nothing changed, where it must be ended and added again instead: vLLM would not take another seed,
        grammar or number of log-probabilities for a request that runs.
        """
        request = self._scheduler.requests.get(request_id)
        if request is None or self.obstacle is not None or not _is_alike(sampling, then.sampling):
            return False
        is_where_it_was_seen = (
            request.status == RequestStatus.RUNNING
            and request.num_output_tokens > then.after_tokens
            and request.num_computed_tokens == request.num_tokens + request.num_output_placeholders - 1
        )
        if not is_where_it_was_seen or not self._has_room(len(then.forced_token_ids)):
            return False
        # What several steps at once drew beyond is dropped, together with the token too many. No page of it is in the
        # prefix cache yet: pages go there when the next step is scheduled, or, ahead, when their last token is written.
        request.drop_stale_output = True
        request.num_stale_output_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0
        request.spec_token_ids = []
        request.num_computed_tokens = request.num_prompt_tokens + then.after_tokens
        self._scheduler.running.remove(request)
        self._scheduler._update_request_as_session(request, _update(request, then))
        self._scheduler._enqueue_waiting_request(request)
        return True

    def prioritize(self, request_id: str, priority: int) -> None:
        """Gives vLLM's request of that id another priority, whether it runs or waits."""
        request = self._scheduler.requests.get(request_id)
        if request is None or self._scheduler.policy is not SchedulingPolicy.PRIORITY:
            return
        queues = (self._scheduler.waiting, self._scheduler.kv_holding_waiting)
        queue = None if request.status == RequestStatus.RUNNING else next((q for q in queues if request in q), None)
        if queue is not None:  # a heap, which its place in has to be found anew
            queue.remove_requests([request])
        request.priority = priority
        if queue is not None:
            queue.add_request(request)

    def _obstacle(self) -> str | None:
        config = self._core.vllm_config
        if config.speculative_config is not None and config.scheduler_config.async_scheduling:
            return "speculative decoding runs ahead"
        if config.parallel_config.pipeline_parallel_size > 1:
            return "the model's layers are spread over several processes"
        return None

    def _has_room(self, tokens: int) -> bool:
        """Whether there are pages for it if all requests were extended at once: those that wait keep what they hold, so
        that none of them could go on if none were left.
        """
        pages = sum(tokens // size + 1 for size in self._page_sizes)
        return bool(self._pool.get_num_free_blocks() >= pages * len(self._scheduler.requests))


def _is_alike(first: Sampling, second: Sampling) -> bool:
    """Whether only their limits differ, and there is no state that would have to begin anew."""
    rest = msgspec.structs.replace(second, max_tokens=first.max_tokens, min_tokens=first.min_tokens)
    return rest == first and first.seed is None and first.grammar is None and first.prompt_logprobs is None


def _update(request: Request, then: Continuation) -> StreamingUpdate:
    """The forced tokens in the place of the last one drawn; the request keeps its place in the queue."""
    params = copy.copy(request.sampling_params)
    assert params is not None
    params.max_tokens, params.min_tokens = then.sampling.max_tokens, then.sampling.min_tokens
    return StreamingUpdate(
        mm_features=None,
        prompt_token_ids=list(then.forced_token_ids),
        max_tokens=then.sampling.max_tokens,
        arrival_time=request.arrival_time,
        sampling_params=params,
    )
