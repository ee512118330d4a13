"""A step of vLLM's engine whose plain outputs go past its output processor.

vLLM makes two objects, and a look at text and log-probabilities, of every token. A token from the middle of a request
without log-probabilities is a token: it is handed out as it came from the scheduler.
"""

import os
from typing import Any, NamedTuple

SWITCH = "TWOGEAR_DIRECT_OUTPUTS"
"""The environment variable that turns it off: 0."""


class Outputs(NamedTuple):
    """Of one step: `plain` by vLLM's ids of the requests, tokens from their middle; `others`: RequestOutputs."""

    plain: list[tuple[str, list[int]]]
    others: list[Any]


class PlainSteps:
    """vLLM's own step, where the other cannot be."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def step(self) -> Outputs:
        """As LLMEngine.step."""
        return Outputs([], self._engine.step())


class DirectSteps:
    """For one LLMEngine whose core is in this process."""

    def __init__(self, engine: Any) -> None:
        self._client = engine.engine_core
        self._processor = engine.output_processor
        self.obstacle = self._obstacle(engine)
        """Why every output has to go through vLLM's processor; None where plain ones need not."""

    def _obstacle(self, engine: Any) -> str | None:
        config = engine.vllm_config
        obstacles = {
            f"{SWITCH} is 0": os.environ.get(SWITCH, "1") == "0",
            "vLLM's statistics are on": engine.log_stats,
            "vLLM's traces are on": self._processor.tracing_enabled,
            "outputs are sent in intervals": self._processor.stream_interval > 1,
            "the model takes images or sound": config.model_config.is_multimodal_model,
            "the model does not generate": config.model_config.runner_type != "generate",
        }
        return next((reason for reason, holds in obstacles.items() if holds), None)

    def step(self) -> Outputs:
        """As LLMEngine.step, for requests whose outputs are deltas of token ids."""
        came = self._client.get_output()
        plain, others = [], []
        for output in came.outputs:
            is_plain = (
                output.finish_reason is None
                and output.prefill_stats is None  # of the first output
                and output.new_logprobs is None
                and output.new_prompt_logprobs_tensors is None
            )
            if is_plain:
                plain.append((output.request_id, output.new_token_ids))
            else:
                others.append(output)
        if not others:
            return Outputs(plain, [])
        done = self._processor.process_outputs(
            others, engine_core_timestamp=came.timestamp, iteration_stats=None, weight_version=came.weight_version
        )
        self._client.abort_requests(done.reqs_to_abort)
        return Outputs(plain, done.request_outputs)
