"""Reloaded weights reach every packed copy, also that of an output head which is tied to the input embedding."""

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from model_impl.cpu import native
from model_impl.weights import VARIABLE, Format
from tests.held_weights import held_weights
from tests.model_impl.config_fields import Fields, fields
from tests.model_impl.decode_rig import one_process
from tests.model_impl.engines import engine, generate
from tests.model_impl.planner import engine_config
from tests.model_impl.tiny import reference_logprobs, save_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.model_loader import get_model
    from vllm.model_executor.model_loader.reload.inplace import reload_weights

    from model_impl.cpu import packed
    from model_impl.cpu.packed import PackedProduct
    from model_impl.cpu.quantized import QuantizedProduct


@pytest.fixture(autouse=True)
def kernels_of_their_own() -> Iterator[None]:
    """Which kernels a process has is settled once, and depends on the format."""
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


def two_checkpoints(folder: Path, config: Fields) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """Writes `old` and `new`, which differ in every weight; returns transformers' old model, and the new weights."""
    model = save_checkpoint(folder / "old", config, torch.bfloat16)
    weights = load_file(folder / "old" / "model.safetensors")
    save_checkpoint(folder / "new", config, torch.bfloat16)
    torch.manual_seed(1)
    changed = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in weights.items()}
    save_file(changed, folder / "new" / "model.safetensors", {"format": "pt"})
    return model, changed


@pytest.mark.engine
@pytest.mark.parametrize(("tied", "held"), [(True, "bf16"), (False, "bf16"), (True, "int8"), (False, "int4")])
def test_a_reloaded_model_computes_with_the_new_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tied: bool, held: Format
) -> None:
    monkeypatch.setenv(VARIABLE, held)
    model, changed = two_checkpoints(tmp_path, fields(tie_word_embeddings=tied))
    rng = random.Random(0)
    prompt = [rng.randrange(101) for _ in range(60)]
    with engine(
        tmp_path / "old", dtype="bfloat16", worker_cls="engine.vllm_internals.cpu_worker.TwogearCPUWorker"
    ) as llm:
        generate(llm, [prompt], [3])  # what a native step has collected is then of the old weights
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(tmp_path / "new")})
        (scored,) = generate(llm, [prompt], [20])
    old = reference_logprobs(model.float(), scored.ids)
    # In 4 bits weights are rounded by a quarter of what the two checkpoints differ by: the reference has them rounded.
    model.load_state_dict(held_weights(changed, held), strict=False)
    new = reference_logprobs(model, scored.ids)
    to_new, to_old = ((scored.logprobs - reference).abs().mean() for reference in (new, old))
    assert to_new < to_old / 5, (to_new, to_old)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("held", ["bf16", "int8", "int4"])
def test_reloaded_weights_are_packed_as_those_of_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tied: bool, held: Format
) -> None:
    monkeypatch.setenv(VARIABLE, held)
    monkeypatch.setattr(packed, "LARGE", 0)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)  # as vLLM's CPU worker does
    config = fields(tie_word_embeddings=tied, dtype="bfloat16")
    two_checkpoints(tmp_path, config)
    with one_process(tmp_path):
        _, started = loaded(tmp_path / "new", config)
        vllm_config, reloaded = loaded(tmp_path / "old", config)
        before = tensors(reloaded)
        reload_weights(vllm_config, reloaded, None, str(tmp_path / "new"), is_checkpoint_format=True)
    after, expected = tensors(reloaded), tensors(started)
    assert after.keys() == expected.keys() == before.keys()
    for name, tensor in expected.items():
        assert torch.equal(after[name], tensor), name
        assert not torch.equal(before[name], tensor), name


def test_a_large_weight_of_embedding_and_head_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)  # as vLLM's CPU worker does
    config = fields(tie_word_embeddings=True, dtype="bfloat16")
    two_checkpoints(tmp_path, config)
    ids, hidden = torch.arange(101).view(1, -1), torch.randn(7, config["hidden_size"]).to(torch.bfloat16)
    computed = []
    with one_process(tmp_path):
        for large in (1 << 40, 0):
            monkeypatch.setattr(packed, "LARGE", large)
            model: Any = loaded(tmp_path / "old", config)[1]
            computed.append((model.embed_input_ids(ids), model.compute_logits(hidden)))
            rows = sum(weight.numel() for name, weight in model.named_parameters() if "embed" in name)
            assert (rows == 0) == (large == 0)
    (vectors, logits), (vectors_of_packed, logits_of_packed) = computed
    assert torch.equal(vectors, vectors_of_packed)
    assert torch.equal(logits, logits_of_packed)


def loaded(folder: Path, config: Fields) -> tuple[VllmConfig, nn.Module]:
    """A checkpoint as an engine loads it."""
    vllm_config = engine_config(folder, config, dtype="bfloat16")
    with warnings.catch_warnings(), set_current_vllm_config(vllm_config):
        warnings.simplefilter("ignore")
        return vllm_config, get_model(vllm_config=vllm_config)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """By name, all that a model computes with, as it is now."""
    linear = {name: getattr(module, "cpu_linear", None) for name, module in model.named_modules()}
    kinds = (PackedProduct, QuantizedProduct)
    held = {name: product.packed.clone() for name, product in linear.items() if isinstance(product, kinds)}
    return held | {name: weight.clone() for name, weight in model.named_parameters() if weight.numel()}
