"""Reloaded weights reach every packed copy, also that of an output head which is tied to the input embedding."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_impl.cpu import native
from model_impl.weights import VARIABLE
from tests.model_impl.config_fields import fields
from tests.model_impl.engines import engine, generate
from tests.model_impl.tiny import reference_logprobs, save_checkpoint


@pytest.mark.engine
@pytest.mark.parametrize(("tied", "held"), [(True, "bf16"), (False, "bf16"), (True, "int8")])
def test_a_reloaded_model_computes_with_the_new_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tied: bool, held: str
) -> None:
    monkeypatch.setenv(VARIABLE, held)
    native.kernels.cache_clear()  # which there are depends on the format
    config = fields(tie_word_embeddings=tied)
    model = save_checkpoint(tmp_path / "old", config, torch.bfloat16)
    weights = load_file(tmp_path / "old" / "model.safetensors")
    save_checkpoint(tmp_path / "new", config, torch.bfloat16)
    torch.manual_seed(1)
    changed = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in weights.items()}
    save_file(changed, tmp_path / "new" / "model.safetensors", {"format": "pt"})
    rng = random.Random(0)
    prompt = [rng.randrange(101) for _ in range(60)]
    with engine(
        tmp_path / "old", dtype="bfloat16", worker_cls="engine.vllm_internals.cpu_worker.TwogearCPUWorker"
    ) as llm:
        generate(llm, [prompt], [3])  # what a native step has collected is then of the old weights
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(tmp_path / "new")})
        (scored,) = generate(llm, [prompt], [20])
    old = reference_logprobs(model.float(), scored.ids)
    model.load_state_dict(changed, strict=False)
    new = reference_logprobs(model, scored.ids)
    to_new, to_old = ((scored.logprobs - reference).abs().mean() for reference in (new, old))
    native.kernels.cache_clear()
    assert to_new < to_old / 5, (to_new, to_old)
