"""Less of the host's time for each request and step, where the scheduler runs ahead of the tokens (on a GPU).

vLLM's AsyncScheduler counts a token that is not drawn yet as a placeholder. It costs 31 to 45 µs of Python for each
request and step, and every load above one stream waits for it. Most of that is for what rarely happens: a page that is
full, a request that ends, a newcomer. Three paths go past it for requests that only decode:

    page room        no pages are asked for while a request stays within the last one that it was given
    short update     one token is appended; whatever may end a request, or says more than a token, is vLLM's
    short schedule   one loop, where all that is to be scheduled is one token of each running request

Whatever is not plain takes vLLM's own way, row by row or the whole step, in which long prompts are read in parts
(`prompt_parts.py`). Tokens, ends and pages are the same; a page is
found by others up to a step later, and what a window gave up is returned with the next page
(`tests/engine/test_ahead_scheduler.py` compares random runs).
"""

import copy
import math
import os
from collections.abc import Iterator
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from engine.vllm_internals.contract import AHEAD_ROOM, PROMPT_PARTS, SHORT_SCHEDULE, SHORT_UPDATE
from engine.vllm_internals.prompt_parts import PromptParts, parts_of
from model_impl.private_names import FastPath, Verdict

SWITCHES = {
    AHEAD_ROOM.name: "TWOGEAR_PAGE_ROOM",
    SHORT_UPDATE.name: "TWOGEAR_SHORT_UPDATE",
    SHORT_SCHEDULE.name: "TWOGEAR_SHORT_SCHEDULE",
}
"""Variables of the environment; 0 leaves a path to vLLM."""
PROMPT_PART_MS = "TWOGEAR_PROMPT_PART_MS"
"""The environment variable for how long a part of a long prompt may take, in milliseconds; 0 for whole prompts."""
_LEAST_PART = 512
"""Tokens of a part of a prompt: about where a GPU's products take longer than to read the weights for them."""


class AheadRoomManager(KVCacheManager):
    """vLLM's manager, quick for a request that decodes within its last page, tokens not drawn yet included."""

    places: dict[str, int]
    """Pages behind the last token that has a slot, of each request that decodes."""
    _full: dict[str, int]
    _page: int

    @classmethod
    def take_over(cls, manager: KVCacheManager) -> None:
        """Turns vLLM's manager into this one: the scheduler names no class for it."""
        manager.__class__ = cls
        quick: Any = manager
        quick.places, quick._full = {}, {}
        quick._page = math.gcd(*(one.block_size for one in manager.coordinator.single_type_managers))

    def place(self, end: int) -> int:
        """How many pages `end` tokens take."""
        return -(-end // self._page)

    def allocate_slots(self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any) -> KVCacheBlocks | None:
        """As vLLM's: the new pages, or None where there are too few."""
        known = request.num_tokens + request.num_output_placeholders
        if known != request.num_computed_tokens + 1 or request.status != RequestStatus.RUNNING:
            self.places.pop(request.request_id, None)
            return super().allocate_slots(request, num_new_tokens, *args, **kwargs)
        place = self.place(request.num_computed_tokens + num_new_tokens)
        if self.places.get(request.request_id) == place:
            return self.empty_kv_cache_blocks
        blocks = super().allocate_slots(request, num_new_tokens, *args, **kwargs)
        # What a prompt needed before the window is given back once its last step is done, not with the next page.
        if blocks is not None and request.num_in_flight_tokens <= request.num_output_placeholders:
            self.places[request.request_id] = place
        return blocks

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """As vLLM's; it is asked with every token, and there is something to do when a page is full."""
        full = num_computed_tokens // self._page
        if self._full.get(request.request_id) != full:
            self._full[request.request_id] = full
            super().cache_blocks(request, num_computed_tokens)

    def free(self, request: Request) -> None:
        """As vLLM's."""
        self._forget(request)
        super().free(request)

    def pop_blocks_for_free(self, request: Request) -> list[Any]:
        """As vLLM's."""
        self._forget(request)
        return super().pop_blocks_for_free(request)

    def _forget(self, request: Request) -> None:
        self.places.pop(request.request_id, None)
        self._full.pop(request.request_id, None)


class AheadScheduler(AsyncScheduler):
    """vLLM's scheduler that runs ahead, with those of the paths that `take_over` found possible."""

    kv_cache_manager: Any
    _updates_short: bool
    _schedules_short: bool
    _parts: PromptParts | None

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """As vLLM's; long prompts may be read in parts."""
        if self._schedules_short and not throttle_prefills and self._all_may_decode():
            plain = self._plain_rows()
            if plain is not None and self._has_pages(plain):
                return self._decode_all(plain)
        # Nothing is allocated yet: vLLM decides who has to go.
        if self._parts is None:
            return super().schedule(throttle_prefills)
        return self._parts.schedule(super().schedule, throttle_prefills)

    def _all_may_decode(self) -> bool:
        return (
            self._pause_state is PauseState.UNPAUSED
            and 0 < len(self.running) <= self.max_num_scheduled_tokens
            and not (self.waiting or self.kv_holding_waiting)
        )

    def _plain_rows(self) -> list[Request] | None:
        """The requests that are to draw a token; None where one of them is to do anything else."""
        limit = self.max_model_len - 1
        rows = []
        for request in self.running:
            computed, ahead = request.num_computed_tokens, request.num_output_placeholders
            if ahead and computed + 2 - ahead >= request.num_prompt_tokens + request.max_tokens:
                continue  # its last token is being drawn
            if len(request._all_token_ids) + ahead != computed + 1 or computed >= limit:
                return None
            if request.structured_output_request is not None or request.spec_token_ids:
                return None
            rows.append(request)
        known = self.prev_step_scheduled_req_ids
        if not self.use_v2_model_runner and any(request.request_id not in known for request in rows):
            return None
        return rows or None

    def _has_pages(self, rows: list[Request]) -> bool:
        """Whether all that begin a page can be given one without taking another's."""
        manager = self.kv_cache_manager
        lacking = sum(manager.places.get(one.request_id) != manager.place(one.num_computed_tokens + 1) for one in rows)
        groups = len(manager.coordinator.single_type_managers)
        return bool(manager.block_pool.get_num_free_blocks() >= lacking * groups)

    def _decode_all(self, rows: list[Request]) -> SchedulerOutput:
        manager = self.kv_cache_manager
        self.current_step += 1
        manager.new_step_starts()
        data = CachedRequestData(
            req_ids=[one.request_id for one in rows],
            resumed_req_ids=set(),
            new_token_ids=[],
            all_token_ids={},
            new_block_ids=[],
            num_computed_tokens=[one.num_computed_tokens for one in rows],
            num_output_tokens=[one.num_output_tokens + one.num_output_placeholders for one in rows],
        )
        places = manager.places
        for request in rows:
            if places.get(request.request_id) == manager.place(request.num_computed_tokens + 1):
                data.new_block_ids.append(None)
            else:
                data.new_block_ids.append(manager.allocate_slots(request, 1).get_block_ids(allow_none=True))
        output = self._output_of(data)
        for request in rows:
            request.num_computed_tokens += 1
            request.num_in_flight_tokens += 1
            request.num_output_placeholders += 1
            request.is_prefill_chunk = False
        self.finished_req_ids, self.reset_preempted_req_ids = set(), set()
        return output

    def _output_of(self, data: CachedRequestData) -> SchedulerOutput:
        """What vLLM's `schedule` says where every row has one token."""
        if not self.use_v2_model_runner:
            self.prev_step_scheduled_req_ids.clear()
            self.prev_step_scheduled_req_ids.update(data.req_ids)
        return SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=data,
            num_scheduled_tokens=dict.fromkeys(data.req_ids, 1),
            total_num_scheduled_tokens=len(data.req_ids),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            scheduled_encoder_input_stats=None,
            preempted_req_ids=self.reset_preempted_req_ids,
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=self.encoder_cache_manager.get_freed_mm_hashes(),
            new_block_ids_to_zero=self._get_new_block_ids_to_zero(),
            has_sync_kv_loads=False,
            kv_cache_block_copies=None,
            kv_connector_block_state=None,
            num_spec_tokens_to_schedule=0,
            ec_manager_metadata=self.encoder_cache_manager.get_manager_metadata(),
        )

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """As vLLM's; the outputs of plain rows come before those of the others."""
        if self._parts is not None:
            self._parts.done(scheduler_output)
        if not self._updates_short or not model_runner_output.sampled_token_ids:
            return super().update_from_output(scheduler_output, model_runner_output)
        outputs: list[EngineCoreOutput] = []
        rest = self._append_plain(scheduler_output, model_runner_output, outputs)
        if not outputs:
            return super().update_from_output(scheduler_output, model_runner_output)
        others = copy.copy(scheduler_output)
        others.num_scheduled_tokens = rest
        done: dict[int, EngineCoreOutputs] = super().update_from_output(others, model_runner_output)
        if 0 in done:
            done[0].outputs = outputs + done[0].outputs
        else:
            done[0] = EngineCoreOutputs(outputs=outputs)
        return done

    def _append_plain(
        self, scheduled: SchedulerOutput, drawn: ModelRunnerOutput, outputs: list[EngineCoreOutput]
    ) -> dict[str, int]:
        """Gives each plain row its token, and `outputs` what vLLM would say of it; the other rows."""
        rest: dict[str, int] = {}
        index, tokens, prompts = drawn.req_id_to_index, drawn.sampled_token_ids, drawn.prompt_logprobs_dict
        page, longest = self.hash_block_size, self.max_model_len
        for request_id, number in scheduled.num_scheduled_tokens.items():
            request = self.requests.get(request_id)
            row = tokens[index[request_id]] if request is not None else ()
            if request is None or number != 1 or len(row) != 1 or request_id in prompts:
                rest[request_id] = number
                continue
            length = len(request._all_token_ids) + 1
            if length >= longest or length % page == 0 or _may_end(request, row[0], length):
                rest[request_id] = number
                continue
            request.num_in_flight_tokens -= 1
            request.num_output_placeholders -= 1
            request._output_token_ids.append(row[0])
            request._all_token_ids.append(row[0])
            outputs.append(EngineCoreOutput(request_id=request_id, new_token_ids=row))
        return rest


def _may_end(request: Request, token_id: int, length: int) -> bool:
    """Whether a token may end the request, whose length it would make that, or is more than a token to be appended."""
    params = request.sampling_params
    return (
        params is None
        or request.status != RequestStatus.RUNNING
        or length - request.num_prompt_tokens >= request.max_tokens
        or token_id == params.eos_token_id
        or token_id in (params.stop_token_ids or ())
        or request.prefill_stats is not None  # its first
        or request.num_stale_output_tokens > 0
        or request.structured_output_request is not None
        or params.num_logprobs is not None
        or params.repetition_detection is not None
        or request.resumable
        or request.client_index != 0
        or request.trace_headers is not None
    )


def take_over(scheduler: Any) -> dict[str, Verdict]:
    """Gives vLLM's scheduler those of the paths that this engine can take; what became of each, by its name."""
    obstacle = next(_obstacles(scheduler), None)
    verdicts = {
        path.name: _verdict(path, obstacle) or Verdict(True, "requests that only decode; all else is vLLM's")
        for path in (AHEAD_ROOM, SHORT_UPDATE, SHORT_SCHEDULE)
    }
    if verdicts[SHORT_SCHEDULE.name].on and not verdicts[AHEAD_ROOM.name].on:
        verdicts[SHORT_SCHEDULE.name] = Verdict(False, f"it needs {AHEAD_ROOM.name}")
    verdicts[PROMPT_PARTS.name] = Verdict(False, obstacle or "")
    if obstacle is None:
        if verdicts[AHEAD_ROOM.name].on:
            AheadRoomManager.take_over(scheduler.kv_cache_manager)
        scheduler.__class__ = AheadScheduler
        scheduler._parts, verdicts[PROMPT_PARTS.name] = parts_of(scheduler, PROMPT_PART_MS, _LEAST_PART)
        scheduler._updates_short = verdicts[SHORT_UPDATE.name].on
        scheduler._schedules_short = verdicts[SHORT_SCHEDULE.name].on
    return verdicts


def _verdict(path: FastPath, obstacle: str | None) -> Verdict | None:
    """Why a path is off; None where it is on."""
    if obstacle is not None:
        return Verdict(False, obstacle)
    if os.environ.get(SWITCHES[path.name], "1") == "0":
        return Verdict(False, f"{SWITCHES[path.name]} is 0")
    return None


def _obstacles(scheduler: Any) -> Iterator[str]:
    """What of the engine's configuration the paths are not written for."""
    if type(scheduler) is not AsyncScheduler:
        yield f"the engine runs with the scheduler {type(scheduler).__module__}.{type(scheduler).__qualname__}"
        return
    config = scheduler.vllm_config
    parallel = config.parallel_config
    specs = [group.kv_cache_spec for group in scheduler.kv_cache_config.kv_cache_groups]
    obstacles = {
        "the model's layers are spread over several processes": parallel.pipeline_parallel_size > 1,
        "a request's tokens are spread over several processes": max(
            parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size
        )
        > 1,
        "speculative decoding is on": config.speculative_config is not None,
        "pages are transferred between engines": (
            scheduler.connector is not None or scheduler.ec_connector is not None or scheduler.defer_block_free
        ),
        "the model takes images or sound": config.model_config.is_multimodal_model,
        "the model does not generate": config.model_config.runner_type != "generate",
        "outputs hold more than tokens": scheduler.aux_output_connector is not None or scheduler.return_sampling_mask,
        "vLLM's statistics are on": scheduler.log_stats or bool(scheduler.perf_metrics),
        "some layers keep other than keys and values": any(
            type(spec) not in {FullAttentionSpec, SlidingWindowSpec} for spec in specs
        ),
    }
    yield from (reason for reason, holds in obstacles.items() if holds)
