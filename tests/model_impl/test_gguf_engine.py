"""A real engine over GGUF files: its scores beside those that transformers gives the weights that a file means."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_impl import cpu
from model_impl.cpu import native
from model_impl.cpu.native import KernelsUnavailableError, quantized_kernels
from model_impl.gguf import LOAD_FORMAT
from model_impl.gguf.folder import folder_for
from tests.model_impl.engines import SamplingParams, engine, generate
from tests.model_impl.gguf_files import q4_k_m, write
from tests.model_impl.tiny import reference_logprobs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    import model_impl.gguf.loading  # noqa: F401 - for the names that it registers

pytestmark = pytest.mark.engine
WINDOWS = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("architecture", "kind", "config"),
    [
        ("llama", q4_k_m, {}),
        ("qwen2", "Q4_0", {"tie_word_embeddings": True}),
        ("qwen3", "Q8_0", {}),
        ("exaone4", q4_k_m, WINDOWS),
        ("exaone4", "BF16", WINDOWS | {"tie_word_embeddings": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_scores_are_those_of_the_weights_that_the_file_means(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    kind: Callable[[str], str] | str,
    config: dict[str, Any],
) -> None:
    try:
        quantized_kernels()
    except KernelsUnavailableError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.kernels.cache_clear()
    model = write(tmp_path / "model.gguf", architecture, kind, config)
    folder = folder_for(tmp_path / "model.gguf", packed=True)
    rng = random.Random(0)
    ids = [rng.randrange(384) for _ in range(100)]
    with engine(folder, dtype="bfloat16", load_format=LOAD_FORMAT) as llm:
        (scored,) = generate(llm, [ids], [1])
        prompts: list[Any] = [{"prompt_token_ids": ids[:count]} for count in (50, 30, 7)]
        greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
        alone, *_ = llm.generate(prompts[:1], greedy, use_tqdm=False)
        in_a_batch, *_ = llm.generate(prompts, greedy, use_tqdm=False)
    if architecture == "exaone4" and native.kernels() is not None:
        assert cpu.verdicts()[cpu.DECODE.name].on  # one call for a step, as with other weights
    assert in_a_batch.outputs[0].token_ids == alone.outputs[0].token_ids
    expected = reference_logprobs(model, ids)
    off = scored.logprobs[: len(ids) - 1] - expected
    # Activations are rounded to 8 bits, so scores are off as by noise; a weight in a wrong place changes all of them.
    assert float(off.abs().mean()) < 0.05 * float(expected.std()), (off.abs().mean(), expected.std())
