"""Tensor and pipeline parallel over two real worker processes give transformers' log-probabilities too."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from model_impl.weights import VARIABLE
from tests.model_impl.config_fields import fields
from tests.model_impl.engines import CompilationMode, engine, generate, largest_difference
from tests.model_impl.tiny import reference_logprobs, save_checkpoint


def model_class(worker: Any) -> str:
    """Runs in a worker: where the class of its model is from."""
    return type(worker.get_model()).__module__


# Traced by dynamo and run as it is: vLLM's CPU worker makes the buffer in which a pipeline rank receives while it warms
# a compiled model up; an eager one stops at the missing buffer (0.32).
TRACED: dict[str, Any] = {
    "enforce_eager": False,
    "compilation_config": {"mode": CompilationMode.DYNAMO_TRACE_ONCE, "backend": "eager"},
}

# Every rank draws for itself, and goes on with what it drew: the ranks have to agree.
OUR_DRAWS: dict[str, Any] = {"worker_cls": "engine.vllm_internals.cpu_worker.TwogearCPUWorker"}


@pytest.mark.engine
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"tensor_parallel_size": 2} | OUR_DRAWS, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ({"tensor_parallel_size": 2}, {"num_key_value_heads": 1}),  # both ranks hold the one head
        ({"pipeline_parallel_size": 2} | TRACED, {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    ],
    ids=["tensor", "tensor-replicated", "pipeline"],
)
def test_two_ranks_compute_one_model(
    options: dict[str, Any], shape: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fields(layer_types=None, sliding_window_pattern="LLLG") | shape
    reference = save_checkpoint(tmp_path, config)
    rng = random.Random(0)
    prompts = [[rng.randrange(101) for _ in range(length)] for length in (39, 41, 300)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with engine(
        tmp_path,
        max_num_batched_tokens=96,
        distributed_executor_backend="mp",
        **options,
    ) as llm:
        assert llm.collective_rpc(model_class) == ["model_impl.exaone4.model"] * 2
        mixed = generate(llm, prompts, [50, 50, 10])
    for scored in mixed:
        assert largest_difference(scored, reference_logprobs(reference, scored.ids)) < 2e-4


@pytest.mark.engine
def test_two_ranks_with_weights_in_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "int8")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    reference = save_checkpoint(tmp_path, fields(num_key_value_heads=2, tie_word_embeddings=True), torch.bfloat16)
    rng = random.Random(0)
    prompt = [rng.randrange(101) for _ in range(100)]
    two: dict[str, Any] = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    with engine(tmp_path, dtype="bfloat16", **two, **OUR_DRAWS) as llm:
        (scored,) = generate(llm, [prompt], [20])
    expected = reference_logprobs(reference.float(), scored.ids)
    off = (scored.logprobs - expected).abs().mean()
    assert off < 0.05 * expected.std(), (off, expected.std())
