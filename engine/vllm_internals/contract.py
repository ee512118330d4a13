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
_PAGES_OF_A_KIND = "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager"
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
            ("num_scheduled_tokens", "scheduled_spec_decode_tokens"),
        ),
        PrivateName(
            _REQUEST,
            (
                *("max_tokens", "num_computed_tokens", "num_output_tokens", "num_tokens", "priority", "request_id"),
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
        PrivateName("vllm.v1.engine.core:EngineCore", ("vllm_config",)),
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
                *("arrival_time", "drop_stale_output", "num_computed_tokens", "num_in_flight_tokens"),
                *("num_output_placeholders", "num_output_tokens", "num_prompt_tokens", "num_stale_output_tokens"),
                *("num_tokens", "priority", "sampling_params", "spec_token_ids", "status"),
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
        PrivateName("vllm.v1.core.block_pool:BlockPool", ("cached_block_hash_to_block", "get_new_blocks")),
        PrivateName("vllm.v1.core.block_pool:BlockPool.touch", parameters=("self", "blocks")),
        PrivateName("vllm.v1.core.block_pool:BlockPool.free_blocks", parameters=("self", "ordered_blocks")),
        PrivateName("vllm.v1.core.block_pool:BlockPool.unpin_blocks", parameters=("self", "blocks", "on_reuse")),
        PrivateName(
            "vllm.v1.core.block_pool:BlockPool._insert_block_hash",
            parameters=("self", "block_hash_with_group_id", "block", "num_tokens"),
        ),
        PrivateName("vllm.v1.core.block_pool:BlockPool._remove_cached_block_hashes", parameters=("self", "block")),
        PrivateName("vllm.v1.core.block_pool:BlockPool.reset_prefix_cache", parameters=("self",)),
        PrivateName(
            f"{_PAGES_OF_A_KIND}.allocate_new_blocks",
            parameters=("self", "request_id", "num_tokens", "num_tokens_main_model"),
        ),
        PrivateName(
            f"{_PAGES_OF_A_KIND}.allocate_external_computed_blocks",
            parameters=(
                *("self", "request_id", "num_local_computed_tokens", "num_external_computed_tokens"),
                "record_for_zeroing",
            ),
        ),
        PrivateName("vllm.v1.core.kv_cache_utils:get_group_id", parameters=("key",)),
        PrivateName(_PAGE_KIND, ("page_size_bytes",)),
        PrivateName(f"{_PAGE_KIND}.max_memory_usage_bytes", parameters=("self", "vllm_config")),
        PrivateName("vllm.v1.kv_cache_interface:get_kv_cache_spec_sliding_window", parameters=("kv_cache_spec",)),
    ),
)
_PAGE_KINDS = (
    PrivateName("vllm.v1.kv_cache_interface:FullAttentionSpec"),
    PrivateName("vllm.v1.kv_cache_interface:SlidingWindowSpec"),
)
_AHEAD = (
    PrivateName(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        (
            *("aux_output_connector", "connector", "defer_block_free", "ec_connector", "kv_cache_config"),
            *("kv_cache_manager", "log_stats", "perf_metrics", "return_sampling_mask", "vllm_config"),
        ),
    ),
    *_PAGE_KINDS,
)
"""What the three paths ask before they take a scheduler over."""
AHEAD_ROOM = FastPath(
    "page room ahead",
    (
        *_AHEAD,
        PrivateName("vllm.v1.core.kv_cache_manager:KVCacheBlocks"),
        PrivateName(_PAGES, ("coordinator", "empty_kv_cache_blocks", "free", "pop_blocks_for_free")),
        PrivateName(
            f"{_PAGES}.allocate_slots",
            parameters=(
                *("self", "request", "num_new_tokens", "num_new_computed_tokens", "new_computed_blocks"),
                "num_lookahead_tokens",
            ),
        ),
        PrivateName(f"{_PAGES}.cache_blocks", parameters=("self", "request", "num_computed_tokens")),
        PrivateName(_PAGES_OF_A_KIND, ("block_size",)),
        PrivateName(
            _REQUEST,
            (
                *("num_computed_tokens", "num_in_flight_tokens", "num_output_placeholders", "num_tokens"),
                *("request_id", "status"),
            ),
        ),
        PrivateName("vllm.v1.request:RequestStatus", ("RUNNING",)),
    ),
)
SHORT_UPDATE = FastPath(
    "short update",
    (
        *_AHEAD,
        PrivateName(_SCHEDULER, ("hash_block_size", "max_model_len", "requests")),
        PrivateName(f"{_SCHEDULER}.update_from_output", parameters=("self", "scheduler_output", "model_runner_output")),
        PrivateName("vllm.v1.core.sched.output:SchedulerOutput", ("num_scheduled_tokens",)),
        PrivateName(
            "vllm.v1.outputs:ModelRunnerOutput", ("prompt_logprobs_dict", "req_id_to_index", "sampled_token_ids")
        ),
        PrivateName("vllm.v1.engine:EngineCoreOutput", ("new_token_ids", "request_id")),
        PrivateName("vllm.v1.engine:EngineCoreOutputs", ("outputs",)),
        PrivateName(
            _REQUEST,
            (
                *("_all_token_ids", "_output_token_ids", "client_index", "max_tokens", "num_in_flight_tokens"),
                *("num_output_placeholders", "num_prompt_tokens", "num_stale_output_tokens", "prefill_stats"),
                *("resumable", "sampling_params", "status", "structured_output_request", "trace_headers"),
            ),
        ),
        PrivateName("vllm.v1.request:RequestStatus", ("RUNNING",)),
    ),
)
SHORT_SCHEDULE = FastPath(
    "short schedule",
    (
        *_AHEAD,
        PrivateName(
            _SCHEDULER,
            (
                *("_get_new_block_ids_to_zero", "_pause_state", "current_step", "encoder_cache_manager"),
                *("finished_req_ids", "kv_holding_waiting", "max_model_len", "max_num_scheduled_tokens"),
                *("prev_step_scheduled_req_ids", "reset_preempted_req_ids", "running", "use_v2_model_runner"),
                "waiting",
            ),
        ),
        PrivateName(f"{_SCHEDULER}.schedule", parameters=("self", "throttle_prefills")),
        PrivateName("vllm.v1.core.sched.interface:PauseState", ("UNPAUSED",)),
        PrivateName(
            "vllm.v1.core.sched.output:SchedulerOutput",
            parameters=(
                *("scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens", "total_num_scheduled_tokens"),
                *("scheduled_spec_decode_tokens", "scheduled_encoder_inputs", "finished_req_ids"),
                *("free_encoder_mm_hashes", "scheduled_encoder_input_stats", "preempted_req_ids"),
            ),
        ),
        PrivateName(
            "vllm.v1.core.sched.output:CachedRequestData",
            parameters=(
                *("req_ids", "resumed_req_ids", "new_token_ids", "all_token_ids", "new_block_ids"),
                *("num_computed_tokens", "num_output_tokens"),
            ),
        ),
        *_POOL,
        PrivateName(_PAGES, ("new_step_starts",)),
        PrivateName(
            _REQUEST,
            (
                *("_all_token_ids", "is_prefill_chunk", "max_tokens", "num_computed_tokens", "num_in_flight_tokens"),
                *("num_output_placeholders", "num_output_tokens", "num_prompt_tokens", "request_id"),
                *("spec_token_ids", "structured_output_request"),
            ),
        ),
    ),
)
AHEAD_PATHS = (AHEAD_ROOM, SHORT_UPDATE, SHORT_SCHEDULE)
"""Those of a scheduler that runs ahead."""
PROMPT_PARTS = FastPath(
    "prompts in parts",
    (
        PrivateName(
            _SCHEDULER,
            (
                *("max_num_scheduled_tokens", "need_mamba_block_aligned_split", "running", "scheduler_config"),
                "vllm_config",
            ),
        ),
        PrivateName(f"{_SCHEDULER}.schedule", parameters=("self", "throttle_prefills")),
        PrivateName(f"{_SCHEDULER}.update_from_output", parameters=("self", "scheduler_output", "model_runner_output")),
        PrivateName(f"{_SCHEDULER}.get_request_counts", parameters=("self",)),
        PrivateName(
            "vllm.v1.core.sched.output:SchedulerOutput", ("num_scheduled_tokens", "total_num_scheduled_tokens")
        ),
        PrivateName(
            "vllm.config.scheduler:SchedulerConfig", ("enable_chunked_prefill", "long_prefill_token_threshold")
        ),
        PrivateName(_REQUEST, ("num_computed_tokens", "num_tokens")),
    ),
)
DIRECT_OUTPUTS = FastPath(
    "direct outputs",
    (
        PrivateName("vllm.v1.engine.llm_engine:LLMEngine", ("engine_core", "log_stats", "output_processor")),
        PrivateName("vllm.v1.engine.core_client:InprocClient.get_output", parameters=("self",)),
        PrivateName("vllm.v1.engine.core_client:InprocClient.abort_requests", parameters=("self", "request_ids")),
        PrivateName(
            "vllm.v1.engine.output_processor:OutputProcessor.process_outputs",
            parameters=("self", "engine_core_outputs", "engine_core_timestamp", "iteration_stats", "weight_version"),
        ),
        PrivateName("vllm.v1.engine.output_processor:OutputProcessor", ("stream_interval", "tracing_enabled")),
        PrivateName(
            "vllm.v1.engine:EngineCoreOutput",
            (
                *("finish_reason", "new_logprobs", "new_prompt_logprobs_tensors", "new_token_ids", "prefill_stats"),
                "request_id",
            ),
        ),
        PrivateName("vllm.v1.engine:EngineCoreOutputs", ("outputs", "timestamp", "weight_version")),
    ),
)
LIMITS = FastPath(
    "sampling limits",
    (
        PrivateName("vllm.config.vllm:VllmConfig.use_v2_model_runner"),
        PrivateName("vllm.v1.worker.gpu.sample.logit_bias:MAX_NUM_ALLOWED_TOKEN_IDS"),
        PrivateName("vllm.v1.worker.gpu.sample.logit_bias:MAX_NUM_LOGIT_BIAS_TOKENS"),
        PrivateName("vllm.v1.worker.gpu.sample.logit_bias:MAX_NUM_STOP_TOKEN_IDS"),
        PrivateName("vllm.envs:VLLM_MAX_NUM_BAD_WORDS"),
        PrivateName("vllm.envs:VLLM_MAX_BAD_WORDS_TOTAL_TOKENS"),
    ),
)
FEWER_COPIES = FastPath(
    "copies of sampling parameters",
    (
        PrivateName("vllm.config.vllm:VllmConfig.use_v2_model_runner"),
        PrivateName("vllm.v1.worker.gpu.model_runner:GPUModelRunner", ("sampler",)),
        PrivateName("vllm.v1.worker.gpu.sample.sampler:Sampler", ("logits_processors",)),
        PrivateName(
            "vllm.v1.worker.gpu.sample.sampler:Sampler.add_request", parameters=("self", "req_idx", "sampling_params")
        ),
        PrivateName("vllm.v1.worker.gpu.sample.sampler:Sampler.apply_staged_writes", parameters=("self",)),
        PrivateName("vllm.v1.worker.gpu.sample.bad_words:BadWordsState"),
        PrivateName("vllm.v1.worker.gpu.sample.logit_bias:LogitBiasState"),
        PrivateName("vllm.v1.worker.gpu.sample.penalties:PenaltiesState"),
    ),
)
POOL_SIZE = FastPath(
    "size of the KV cache",
    (
        PrivateName("vllm.v1.kv_cache_interface:FullAttentionSpec"),
        PrivateName("vllm.v1.kv_cache_interface:SlidingWindowSpec"),
        PrivateName(_PAGE_KIND, ("block_size", "page_size_bytes")),
        PrivateName("vllm.v1.executor.abstract:Executor.get_kv_cache_specs", parameters=("self",)),
        PrivateName("vllm.v1.executor.abstract:Executor.determine_available_memory", parameters=("self",)),
    ),
)
ONE_TOKENIZER = FastPath(
    "one tokenizer",
    (PrivateName("vllm.renderers.hf:maybe_make_thread_pool", parameters=("tokenizer", "copies")),),
)
JIT_MONITOR = FastPath(
    "compilations before Ready",
    (
        PrivateName("vllm.config.observability:ObservabilityConfig", ("jit_monitor_mode",)),
        PrivateName("vllm.utils.jit_monitor:_mode"),
        PrivateName("vllm.utils.jit_monitor:_handle_jit_event"),
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
    *(
        SAMPLER,
        SEEDS,
        MULTI_STEP,
        *AHEAD_PATHS,
        PROMPT_PARTS,
        DIRECT_OUTPUTS,
        EXTENSION,
        PAGE_COUNTS,
        RECOVERY,
        LIMITS,
        FEWER_COPIES,
        POOL_SIZE,
        ONE_TOKENIZER,
        JIT_MONITOR,
        DEMAND_ZERO,
        TIED_HEADS,
        ADAPTERS,
    ),
    *cpu.FAST_PATHS,
)
"""All, in the order in which they are reported."""

WORKER = (
    PrivateName(_CPU_WORKER, ("model_runner",)),
    PrivateName(f"{_CPU_WORKER}.init_device", parameters=("self",)),
)
OPTIONS = {"--worker-cls": WORKER, "--scheduler-cls": (*MULTI_STEP.needs, *PROMPT_PARTS.needs)}
"""What our classes need that are named to vLLM by an engine option."""


def possible(defaults: Sequence[Choice]) -> list[Choice]:
    """`defaults` without the classes of ours that the installed vLLM has no place for."""
    return [choice for choice in defaults if missing(OPTIONS.get(choice.name, ())) is None]
