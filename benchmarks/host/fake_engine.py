"""vLLM's real LLMEngine, EngineCore and scheduler that runs ahead, with an executor that has every token at once.

So what is left of a step is Python on the host, as it is on a GPU whose kernels are awaited by nobody. The pages are
those of the large checkpoint (`benchmarks.load.checkpoints`): three of four groups slide.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.outputs import ModelRunnerOutput

from benchmarks.load.checkpoints import LARGE_CONFIG

PAGE, TOKEN = 16, 7


class _Done(Future[Any]):
    """A future that has its result when it is asked for it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self._make = make

    def result(self, timeout: float | None = None) -> Any:  # noqa: ARG002 - never waits
        return self._make()


def done_when(make: Callable[[], Any]) -> Future[Any]:
    """A future that has what `make` returns when it is asked for it."""
    return _Done(make)


class AnsweringExecutor(Executor):
    """Draws TOKEN for every request whose prompt has been computed."""

    window = 4096
    memory = 48 << 30

    def _init_executor(self) -> None:
        self._left: dict[str, int] = {}  # request → tokens of its prompt that are not computed
        self._scheduled: Any = None

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """As on a GPU."""
        return True

    def collective_rpc(self, method: Any, *_args: Any, **_options: Any) -> Any:
        """There is one worker, which has nothing to say."""
        if callable(method):
            return [method(object())]
        return [("generate",)] if method == "get_supported_tasks" else []

    def get_kv_cache_specs(self) -> list[dict[str, Any]]:
        """Those of the large checkpoint."""
        shape: dict[str, Any] = {
            "block_size": PAGE,
            "num_kv_heads": LARGE_CONFIG["num_key_value_heads"],
            "head_size": LARGE_CONFIG["head_dim"],
            "dtype": torch.bfloat16,
        }
        return [
            {
                f"model.layers.{number}.self_attn.attn": FullAttentionSpec(**shape)
                if kind == "full_attention"
                else SlidingWindowSpec(**shape, sliding_window=self.window)
                for number, kind in enumerate(LARGE_CONFIG["layer_types"])
            }
        ]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """Any."""
        return [["LBNHC", "LBHNC"]]

    def set_kv_cache_layout(self, layout_name: str) -> None:
        """There is no memory to lay out."""

    def determine_available_memory(self) -> list[int]:
        """In bytes."""
        return [self.memory]

    def initialize_from_config(self, kv_cache_configs: list[Any]) -> None:
        """There is no memory to take."""

    def compile_or_warm_up_model(self) -> None:
        """Nothing to compile."""

    def check_health(self) -> None:
        """Nothing can fail."""

    def shutdown(self) -> None:
        """Nothing runs."""

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:  # noqa: ARG002 - vLLM's signature
        """Notes what is to be drawn from."""
        for new in scheduler_output.scheduled_new_reqs:
            self._left[new.req_id] = len(new.prefill_token_ids or new.prompt_token_ids) - new.num_computed_tokens
        for gone in scheduler_output.finished_req_ids:
            self._left.pop(gone, None)
        if scheduler_output.total_num_scheduled_tokens == 0:
            return _Done(lambda: ModelRunnerOutput(req_ids=[], req_id_to_index={}))
        self._scheduled = scheduler_output
        return _Done(lambda: None)

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:  # noqa: ARG002 - vLLM's signature
        """A token for every row whose prompt is computed."""
        rows = [self._row(name, number) for name, number in self._scheduled.num_scheduled_tokens.items()]
        names = list(self._scheduled.num_scheduled_tokens)
        index = {name: number for number, name in enumerate(names)}
        output = ModelRunnerOutput(req_ids=names, req_id_to_index=index, sampled_token_ids=rows)
        return _Done(lambda: output) if non_block else output

    def _row(self, name: str, computed: int) -> list[int]:
        left = self._left[name] - computed
        self._left[name] = max(left, 0)
        return [] if left > 0 else [self._token()]

    def _token(self) -> int:
        return TOKEN


def fake_engine(
    folder: Path, executor: type[Executor] = AnsweringExecutor, *, ahead: bool = True, **options: Any
) -> LLMEngine:
    """An engine for the large checkpoint's configuration, which is written into `folder`; no weights are read.

    `ahead`: with vLLM's asynchronous scheduling, as on a GPU.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    (folder / "config.json").write_text(json.dumps(LARGE_CONFIG), encoding="utf-8")
    chosen: dict[str, Any] = {
        "max_num_seqs": 1024,
        "max_num_batched_tokens": 8192,
        "max_model_len": 32768,
        "block_size": PAGE,
        "scheduling_policy": "priority",
        "prefix_cache_retention_interval": None,
        "structured_outputs_config": {"backend": "guidance"},
    }
    arguments = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        async_scheduling=ahead,
        disable_log_stats=True,
        distributed_executor_backend=executor,
        **(chosen | options),
    )
    usage = UsageContext.OPENAI_API_SERVER
    config = arguments.create_engine_config(usage)
    config.scheduler_config.async_scheduling = ahead  # vLLM turns it off on CPUs
    return LLMEngine(vllm_config=config, executor_class=executor, log_stats=False, usage_context=usage)
