"""vLLM's sampler with its costly steps replaced: the draw, the penalties, what is reported of log-probabilities.

What to compute is in `model_impl/sampling/`. The order of the steps, greedy rows, grammars, biases and bad words stay
vLLM's (v1/sample/sampler.py).
"""

from typing import Any, cast

import numpy as np
import torch
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import _SAMPLING_EPS, Sampler

from model_impl.cpu.native import kernels
from model_impl.sampling.draw import Drawer, Floats, Limits
from model_impl.sampling.logprobs import largest, ranks
from model_impl.sampling.penalties import apply_penalties


class TwogearSampler(Sampler):
    """Draws as vLLM's sampler does, up to which random numbers decide, for logits on the CPU."""

    _drawer: Drawer

    @classmethod
    def take_over(cls, sampler: Sampler) -> None:
        """Turns vLLM's sampler into this one; others (speculative decoding) may hold it already."""
        sampler.__class__ = cls
        sampler._drawer = Drawer(kernels())  # type: ignore[assignment]

    def sample(
        self,
        logits: torch.Tensor,
        sampling_metadata: SamplingMetadata,
        logprobs_mode_override: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids (rows,) for logits (rows, vocabulary) in float32; with what vLLM alone knows, as vLLM does it."""
        mode = logprobs_mode_override or self.logprobs_mode
        processors = sampling_metadata.logitsprocs.argmax_invariant
        if (
            sampling_metadata.all_greedy
            or mode in PROCESSED_LOGPROBS_MODES
            or any(type(processor) is not MinPLogitsProcessor for processor in processors)
        ):
            return super().sample(logits, sampling_metadata, logprobs_mode_override)
        assert sampling_metadata.temperature is not None
        limits = Limits(
            None if sampling_metadata.top_k is None else sampling_metadata.top_k.numpy(),
            None if sampling_metadata.top_p is None else sampling_metadata.top_p.numpy().astype(np.float64),
            _min_p(processors),
        )
        uniforms = _uniforms(len(logits), sampling_metadata.generators)
        if sampling_metadata.all_random:
            rows = np.arange(len(logits))
            drawn = self._drawer.draw(logits, rows, sampling_metadata.temperature, uniforms, limits)
            return torch.from_numpy(drawn), None
        rows = np.flatnonzero(sampling_metadata.temperature.numpy() >= _SAMPLING_EPS)
        tokens = self.greedy_sample(logits)
        temperature = sampling_metadata.temperature[rows]
        drawn = self._drawer.draw(logits, rows, temperature, uniforms[rows], limits.rows(rows))
        tokens[rows] = torch.from_numpy(drawn)
        return tokens, None

    @staticmethod
    def apply_penalties(
        logits: torch.Tensor, sampling_metadata: SamplingMetadata, output_token_ids: list[list[int]]
    ) -> torch.Tensor:
        """Changes the logits of the tokens that were seen, in place."""
        if not sampling_metadata.no_penalties:
            assert sampling_metadata.prompt_token_ids is not None
            apply_penalties(
                logits.numpy(),
                sampling_metadata.prompt_token_ids.numpy(),
                output_token_ids,
                repetition=sampling_metadata.repetition_penalties.numpy(),
                frequency=sampling_metadata.frequency_penalties.numpy(),
                presence=sampling_metadata.presence_penalties.numpy(),
            )
        return logits

    @staticmethod
    def gather_logprobs(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> LogprobsTensors:
        """Of (rows, vocabulary): each row's token (rows,) first, then its likeliest ones; and the tokens' ranks."""
        values, ids = largest(logprobs, num_logprobs)
        tokens = token_ids[:, None]
        return LogprobsTensors(
            torch.cat((tokens, ids), 1).to(torch.int32),
            torch.cat((logprobs.gather(1, tokens), values), 1),
            ranks(logprobs, token_ids),
        )


def _min_p(processors: list[Any]) -> Floats | None:
    """The rows' min-p, if any has one."""
    for processor in processors:
        if processor.min_p_count:
            return cast("Floats", processor.min_p.numpy()[:, 0].astype(np.float64))
    return None


def _uniforms(rows: int, generators: dict[int, torch.Generator]) -> Floats:
    """A number in [0, 1) per row: of its request's generator, or of the one that all ranks of a model share."""
    uniforms = torch.empty(rows, dtype=torch.float64)
    if len(generators) < rows:
        uniforms.uniform_()
    for row, generator in generators.items():
        uniforms[row].uniform_(generator=generator)
    return cast("Floats", uniforms.numpy())
