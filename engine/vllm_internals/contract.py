"""Which fast paths this engine can take: one table of what each needs of vLLM's inside, shared by all who ask.

The start asks it before it names our worker and scheduler to vLLM, and before any file here that stands on private
names is imported. `README.md` explains each name, and `tests/engine/test_contract.py` holds table, README and code
together. Paths inside a model have their part of the table in `model_impl/cpu/__init__.py`.
"""

from collections.abc import Sequence

from engine.defaults import Choice
from model_impl import cpu
from model_impl.private_names import FastPath, PrivateName, missing

CPU_RUNNER = "vllm.v1.worker.cpu_model_runner:CPUModelRunner"
_CPU_WORKER = "vllm.v1.worker.cpu_worker:CPUWorker"
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_PAGES = "vllm.v1.core.kv_cache_manager:KVCacheManager"
_PAGE_KIND = "vllm.v1.kv_cache_interface:KVCacheSpec"
_REQUEST = "vllm.v1.request:Request"
_SAMPLER = "vllm.v1.sample.sampler:Sampler"
_INPUTS = "vllm.v1.worker.gpu_input_batch:InputBatch"

_IN_PROCESS = (
    PrivateName("vllm.v1.engine.core_client:InprocClient", ("engine_core",)),
    PrivateName("vllm.v1.engine.core:EngineCore", ("batch_queue", "scheduler")),
)
_POOL = (
    PrivateName(_PAGES, ("block_pool", "coordinator")),
    PrivateName("vllm.v1.core.block_pool:BlockPool", ("blocks", "num_gpu_blocks")),
    PrivateName("vllm.v1.core.block_pool:BlockPool.get_num_free_blocks", parameters=("self",)),
    PrivateName("vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator", ("single_type_managers",)),
    PrivateName(
        "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager",
        ("block_size", "kv_cache_spec", "req_to_blocks"),
    ),
)

SAMPLER = FastPath(
    "sampler",
    (
        PrivateName(_SAMPLER, ("greedy_sample", "logprobs_mode")),
        PrivateName(f"{_SAMPLER}.sample", parameters=("self", "logits", "sampling_metadata", "logprobs_mode_override")),
        PrivateName(f"{_SAMPLER}.apply_penalties", parameters=("logits", "sampling_metadata", "output_token_ids")),
        PrivateName(f"{_SAMPLER}.gather_logprobs", parameters=("logprobs", "num_logprobs", "token_ids")),
        PrivateName("vllm.v1.sample.sampler:_SAMPLING_EPS"),
        PrivateName("vllm.config.model:PROCESSED_LOGPROBS_MODES"),
        PrivateName("vllm.v1.sample.logits_processor.builtin:MinPLogitsProcessor", ("min_p", "min_p_count")),
        PrivateName(
            "vllm.v1.sample.metadata:SamplingMetadata",
            (
                *("all_greedy", "all_random", "frequency_penalties", "generators", "logitsprocs", "no_penalties"),
                *("presence_penalties", "prompt_token_ids", "repetition_penalties", "temperature", "top_k", "top_p"),
            ),
        ),
        PrivateName(
            "vllm.v1.outputs:LogprobsTensors", ("logprob_token_ids", "logprobs", "selected_token_ranks", "tolists")
        ),
        PrivateName(CPU_RUNNER, ("sampler",)),
    ),
)
SEEDS = FastPath(
    "seeds of chunked prompts",
    (
        PrivateName(CPU_RUNNER, ("_bookkeeping_sync", "_sample", "discard_request_mask", "input_batch")),
        PrivateName(_INPUTS, ("generators", "num_reqs")),
    ),
)
MULTI_STEP = FastPath(
    "multi-step decoding",
    (
        # the scheduler's half
        PrivateName(
            _SCHEDULER,
            (
                *("connector", "ec_connector", "kv_cache_config", "kv_cache_manager", "max_model_len", "pause_state"),
                *("max_num_running_reqs", "max_num_scheduled_tokens", "running", "scheduler_config", "vllm_config"),
            ),
        ),
        PrivateName(f"{_SCHEDULER}.schedule", parameters=("self", "throttle_prefills")),
        PrivateName(f"{_SCHEDULER}.update_from_output", parameters=("self", "scheduler_output", "model_runner_output")),
        PrivateName(f"{_SCHEDULER}.get_request_counts", parameters=("self",)),
        PrivateName("vllm.v1.core.sched.interface:PauseState", ("UNPAUSED",)),
        PrivateName(
            "vllm.v1.core.sched.output:SchedulerOutput",
            ("num_scheduled_tokens", "scheduled_spec_decode_tokens", "total_num_scheduled_tokens"),
        ),
        PrivateName(
            _REQUEST,
            (
                *("max_tokens", "num_computed_tokens", "num_output_tokens", "num_tokens", "request_id"),
                *("spec_token_ids", "status", "use_structured_output"),
            ),
        ),
        PrivateName("vllm.v1.kv_cache_interface:FullAttentionSpec"),
        PrivateName("vllm.v1.kv_cache_interface:SlidingWindowSpec"),
        PrivateName("vllm.envs:VLLM_COMPUTE_NANS_IN_LOGITS"),
        # the pages between
        *_POOL,
        PrivateName(_PAGES, ("cache_blocks", "empty_kv_cache_blocks", "free", "pop_blocks_for_free")),
        PrivateName(
            f"{_PAGES}.allocate_slots",
            parameters=(
                *("self", "request", "num_new_tokens", "num_new_computed_tokens", "new_computed_blocks"),
                "num_lookahead_tokens",
            ),
        ),
        PrivateName("vllm.v1.core.kv_cache_manager:KVCacheBlocks"),
        PrivateName("vllm.v1.request:RequestStatus", ("RUNNING",)),
        # the runner's half
        PrivateName(
            CPU_RUNNER,
            (
                *("_attn_group_iterator", "_model_forward", "_sample", "execute_model", "input_batch", "input_ids"),
                *("model", "positions", "query_start_loc", "requests", "sample_tokens", "seq_lens"),
                "speculative_config",
            ),
        ),
        PrivateName(
            _INPUTS,
            ("block_table", "is_token_ids", "num_tokens_no_spec", "refresh_metadata", "req_ids", "token_ids_cpu"),
        ),
        PrivateName("vllm.v1.worker.block_table:BlockTable", ("block_size", "block_table", "slot_mapping")),
        PrivateName(
            "vllm._custom_ops:cpu_attn_get_scheduler_metadata",
            parameters=(
                *("num_reqs", "num_heads", "num_kv_heads", "head_dim", "seq_lens", "dtype", "query_start_loc"),
                *("causal", "sliding_window_size", "isa", "enable_kv_split", "dynamic_causal", "kv_cache_dtype"),
            ),
        ),
        PrivateName("torch:ops._C.compute_slot_mapping_kernel_impl"),  # registered by vLLM's library
        PrivateName("vllm.envs:VLLM_CPU_ATTN_SPLIT_KV"),
        PrivateName("vllm.forward_context:ForwardContext", ("attn_metadata",)),
        PrivateName("vllm.forward_context:get_forward_context", parameters=()),
        PrivateName("vllm.forward_context:override_forward_context"),
        PrivateName(
            "vllm.v1.outputs:LogprobsLists",
            ("cu_num_generated_tokens", "logprob_token_ids", "logprobs", "sampled_token_ranks"),
        ),
        PrivateName("vllm.v1.outputs:ModelRunnerOutput", ("logprobs", "sampled_token_ids")),
    ),
)
EXTENSION = FastPath(
    "request extension",
    (
        *_IN_PROCESS,
        *_POOL,
        PrivateName(_SCHEDULER, ("kv_cache_manager", "kv_holding_waiting", "policy", "requests", "running", "waiting")),
        PrivateName("vllm.v1.core.sched.request_queue:RequestQueue.add_request", parameters=("self", "request")),
        PrivateName("vllm.v1.core.sched.request_queue:RequestQueue.remove_requests", parameters=("self", "requests")),
        PrivateName("vllm.v1.core.sched.request_queue:SchedulingPolicy", ("PRIORITY",)),
        PrivateName(f"{_SCHEDULER}._update_request_as_session", parameters=("self", "session", "update")),
        PrivateName(f"{_SCHEDULER}._enqueue_waiting_request", parameters=("self", "request")),
        PrivateName(
            _REQUEST,
            (
                *("arrival_time", "num_computed_tokens", "num_output_tokens", "num_prompt_tokens", "num_tokens"),
                *("priority", "sampling_params", "status"),
            ),
        ),
        PrivateName("vllm.v1.request:RequestStatus", ("RUNNING",)),
        PrivateName(
            "vllm.v1.request:StreamingUpdate",
            parameters=("mm_features", "prompt_token_ids", "max_tokens", "arrival_time", "sampling_params"),
        ),
    ),
)
RECOVERY = FastPath(
    "recovery from failed steps",
    (
        *_IN_PROCESS,
        PrivateName(
            _SCHEDULER,
            (
                *("connector", "ec_connector", "finished_req_ids", "kv_cache_manager", "kv_holding_waiting"),
                *("requests", "running", "scheduler_config", "waiting"),
            ),
        ),
        PrivateName(f"{_SCHEDULER}._enqueue_waiting_request", parameters=("self", "request")),
        PrivateName(
            f"{_SCHEDULER}.reset_prefix_cache", parameters=("self", "reset_running_requests", "reset_connector")
        ),
        PrivateName("vllm.v1.core.sched.request_queue:RequestQueue.remove_requests", parameters=("self", "requests")),
        PrivateName(_PAGES, ("free",)),
        PrivateName(
            _REQUEST,
            (
                *("drop_stale_output", "num_computed_tokens", "num_in_flight_tokens", "num_prompt_tokens"),
                *("num_stale_output_tokens", "request_id", "status"),
            ),
        ),
        PrivateName("vllm.v1.request:RequestStatus", ("PREEMPTED", "RUNNING", "WAITING")),
        PrivateName("vllm.v1.worker.gpu_model_runner:GPUModelRunner", ("execute_model_state", "requests")),
    ),
)
PAGE_COUNTS = FastPath(
    "page counts",
    (
        *_IN_PROCESS,
        *_POOL,
        PrivateName(_SCHEDULER, ("get_request_counts", "has_requests", "kv_cache_manager", "running", "vllm_config")),
        PrivateName(f"{_SCHEDULER}._preempt_request", parameters=("self", "request", "timestamp")),
        PrivateName("vllm.v1.core.kv_cache_utils:KVCacheBlock", ("block_hash", "block_id", "is_null", "ref_cnt")),
        PrivateName("vllm.v1.core.kv_cache_utils:get_group_id", parameters=("key",)),
        PrivateName(_PAGE_KIND, ("page_size_bytes",)),
        PrivateName(f"{_PAGE_KIND}.max_memory_usage_bytes", parameters=("self", "vllm_config")),
        PrivateName("vllm.v1.kv_cache_interface:get_kv_cache_spec_sliding_window", parameters=("kv_cache_spec",)),
    ),
)
DEMAND_ZERO = FastPath(
    "demand-zero KV cache",
    (PrivateName(f"{_CPU_WORKER}._maybe_get_memory_pool_context", parameters=("self", "tag")),),
)
TIED_HEADS = FastPath(
    "reload of tied heads",
    (
        PrivateName(_CPU_WORKER, ("reload_weights",)),
        PrivateName(CPU_RUNNER, ("get_model",)),
        PrivateName(
            "vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod.process_weights_after_loading",
            parameters=("self", "layer"),
        ),
    ),
)

_PUNICA = "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU"
ADAPTERS = FastPath(
    "adapters",
    (
        PrivateName(_CPU_WORKER, ("load_model",)),
        PrivateName(CPU_RUNNER, ("lora_manager",)),
        PrivateName("vllm.lora.worker_manager:WorkerLoRAManager", ("_adapter_manager",)),
        PrivateName("vllm.lora.model_manager:LoRAModelManager", ("punica_wrapper_mapping",)),
        PrivateName(_PUNICA, ("sampler_indices", "token_lora_indices", "update_metadata")),
        PrivateName(f"{_PUNICA}._apply_shrink", parameters=("self", "y", "x", "w_t_all", "scale")),
        PrivateName(
            f"{_PUNICA}._apply_expand",
            parameters=("self", "y", "x", "w_t_all", "y_offset", "y_slice_size", "add_inputs"),
        ),
        PrivateName(f"{_PUNICA}.add_lora_embedding", parameters=("self", "y", "x", "lora_b_stacked", "add_inputs")),
        PrivateName(
            f"{_PUNICA}.add_lora_logits", parameters=("self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale")
        ),
    ),
)

WORKER_PATHS = (SAMPLER, SEEDS, DEMAND_ZERO, TIED_HEADS, ADAPTERS)
"""Those that our CPU worker takes alone."""
FAST_PATHS = (
    *(SAMPLER, SEEDS, MULTI_STEP, EXTENSION, PAGE_COUNTS, RECOVERY, DEMAND_ZERO, TIED_HEADS, ADAPTERS),
    *cpu.FAST_PATHS,
)
"""All, in the order in which they are reported."""

WORKER = (
    PrivateName(_CPU_WORKER, ("model_runner",)),
    PrivateName(f"{_CPU_WORKER}.init_device", parameters=("self",)),
)
OPTIONS = {"--worker-cls": WORKER, "--scheduler-cls": MULTI_STEP.needs}
"""What our classes need that are named to vLLM by an engine option."""


def possible(defaults: Sequence[Choice]) -> list[Choice]:
    """`defaults` without the classes of ours that the installed vLLM has no place for."""
    return [choice for choice in defaults if missing(OPTIONS.get(choice.name, ())) is None]
