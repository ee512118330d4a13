"""The runner's half of multi-step decoding: what a step costs around the model is paid once for several steps.

`scheduler.py` schedules several steps as vLLM schedules a draft of unknown tokens: with placeholders behind a request's
next token, their pages included. vLLM's scheduler takes what comes back as a draft that was right in every token. Here
the tokens are computed one after the other, each from the one before: the same that come out of single steps.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from vllm import _custom_ops as ops
from vllm import envs
from vllm.forward_context import ForwardContext, get_forward_context, override_forward_context
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


class _Drawn(NamedTuple):
    """Of one step: a token per row, and the rows' log-probabilities where a request asked for them."""

    tokens: torch.Tensor
    logprobs: LogprobsLists | None


class MultiStepCPUModelRunner(CPUModelRunner):
    """Computes several steps: the first is vLLM's, the others change what differs in the first one's inputs.

    All rows have the same number of steps, and none of them has a grammar: the scheduler sees to it. The steps end
    early where every row has drawn a token that ends its request, and where something waits for the engine (a newcomer,
    say); to vLLM the rest are drafts that were rejected.
    """

    _forward: tuple[ForwardContext, dict[str, Any]]
    interrupted: Callable[[], bool] = staticmethod(lambda: False)
    """Whether something waits that should not wait for all of the steps."""

    def _model_forward(self, **inputs: Any) -> Any:  # type: ignore[override]
        self._forward = (get_forward_context(), inputs)
        return super()._model_forward(**inputs)

    def execute_model(self, scheduler_output: SchedulerOutput, intermediate_tensors: Any = None) -> Any:
        """As vLLM's; where several steps were scheduled, their output, which is sampled already."""
        drafts = scheduler_output.scheduled_spec_decode_tokens
        if not drafts or self.speculative_config is not None:
            return super().execute_model(scheduler_output, intermediate_tensors)
        steps = 1 + len(next(iter(drafts.values())))
        first = replace(
            scheduler_output,
            num_scheduled_tokens=dict.fromkeys(scheduler_output.num_scheduled_tokens, 1),
            total_num_scheduled_tokens=len(scheduler_output.num_scheduled_tokens),
            scheduled_spec_decode_tokens={},
        )
        super().execute_model(first, intermediate_tensors)
        output: ModelRunnerOutput = cast("Any", self).sample_tokens(None)
        drawn = [_Drawn(torch.tensor(output.sampled_token_ids)[:, 0], output.logprobs)]
        open_rows = self._without_stop(drawn[0].tokens, set(range(len(drawn[0].tokens))))
        while len(drawn) < steps and open_rows and not self.interrupted():
            drawn.append(self._step(drawn[-1].tokens))
            open_rows = self._without_stop(drawn[-1].tokens, open_rows)
        tokens = torch.stack([one.tokens for one in drawn], 1)
        self._keep(tokens[:, 1:].numpy())
        return replace(output, sampled_token_ids=tokens.tolist(), logprobs=_merged([one.logprobs for one in drawn]))

    def _step(self, last: torch.Tensor) -> _Drawn:
        """One more token for each row, from the last ones (rows,)."""
        rows = len(last)
        batch: Any = self.input_batch
        self.input_ids.gpu[:rows] = last
        self.positions[:rows] += 1
        self.seq_lens[:rows] += 1
        starts, positions = self.query_start_loc.gpu[: rows + 1], self.positions[:rows]
        for table in batch.block_table.block_tables:
            slots = table.slot_mapping.gpu
            torch.ops._C.compute_slot_mapping_kernel_impl(
                starts, positions, table.block_table.gpu, slots, table.block_size
            )
        batch.refresh_metadata()
        context, inputs = self._forward
        if not getattr(self.model, "needs_no_plan", False):
            self._plan_attention(rows, cast("dict[str, Any]", context.attn_metadata))
        with override_forward_context(context):
            hidden = super()._model_forward(**inputs)
        sampled = self._sample(cast("Any", self.model).compute_logits(hidden), None)
        tokens = sampled.sampled_token_ids[:, 0]
        for request_id, token in zip(batch.req_ids, tokens.tolist(), strict=True):
            self.requests[request_id].output_token_ids.append(token)  # penalties look at them
        logprobs = sampled.logprobs_tensors
        return _Drawn(tokens, None if logprobs is None else logprobs.tolists())

    def _without_stop(self, tokens: torch.Tensor, open_rows: set[int]) -> set[int]:
        """Those of `open_rows` whose token (rows,) does not end their request."""
        request_ids = self.input_batch.req_ids
        drawn = tokens.tolist()
        return {row for row in open_rows if not _ends(self.requests[request_ids[row]].sampling_params, drawn[row])}

    def _plan_attention(self, rows: int, metadata: dict[str, Any]) -> None:
        """Has what vLLM's attention is told beforehand follow the lengths, which are views of the runner's own."""
        for group in self._attn_group_iterator():
            builder: Any = group.get_metadata_builder()
            told = metadata[group.layer_names[0]]
            told.max_seq_len += 1
            told.scheduler_metadata = ops.cpu_attn_get_scheduler_metadata(
                num_reqs=rows,
                num_heads=builder.num_heads,
                num_kv_heads=builder.num_kv_heads,
                head_dim=builder.head_dim,
                seq_lens=told.seq_lens,
                dtype=builder.dtype,
                query_start_loc=told.query_start_loc,
                causal=told.causal,
                sliding_window_size=builder.window_size,
                isa=builder.isa,
                enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
                dynamic_causal=None,
                kv_cache_dtype=builder.kv_cache_dtype,
            )

    def _keep(self, tokens: np.ndarray[Any, Any]) -> None:
        """Writes (rows, further steps) where the next step looks for its inputs."""
        batch = self.input_batch
        rows, steps = tokens.shape
        columns = batch.num_tokens_no_spec[:rows, None] + np.arange(steps)
        batch.token_ids_cpu[np.arange(rows)[:, None], columns] = tokens
        batch.is_token_ids[np.arange(rows)[:, None], columns] = True
        batch.num_tokens_no_spec[:rows] += steps


def _ends(params: SamplingParams | None, token: int) -> bool:
    assert params is not None
    return token == params.eos_token_id or token in (params.stop_token_ids or ())


def _merged(steps: list[LogprobsLists | None]) -> LogprobsLists | None:
    """Of the steps' (rows, ...): (rows · steps, ...), a row's steps behind each other."""
    present = [step for step in steps if step is not None]
    if not present:
        return None
    ids = np.stack([step.logprob_token_ids for step in present], 1)
    values = np.stack([step.logprobs for step in present], 1)
    ranks = np.stack([step.sampled_token_ranks for step in present], 1)
    rows, count = ranks.shape
    starts = list(range(0, rows * count, count))
    return LogprobsLists(ids.reshape(rows * count, -1), values.reshape(rows * count, -1), ranks.reshape(-1), starts)
