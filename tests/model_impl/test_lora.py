"""A LoRA adapter changes the output as adding its product to the weights does, for its own requests alone."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tests.model_impl.config_fields import fields
from tests.model_impl.engines import LoRARequest, engine, generate, largest_difference
from tests.model_impl.tiny import reference_logprobs, save_checkpoint

RANK = 8
ALPHA = 16
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def save_adapter(folder: Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Writes a random adapter of all projections in PEFT's format; returns what it adds to each weight."""
    torch.manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    additions: dict[str, torch.Tensor] = {}
    for name, weight in model.named_parameters():
        if name.split(".")[-2] in PROJECTIONS:
            a = torch.randn(RANK, weight.shape[1]) * 0.1
            b = torch.randn(weight.shape[0], RANK) * 0.1
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            additions[name] = ALPHA / RANK * b @ a
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": PROJECTIONS, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return additions


@pytest.mark.engine
def test_an_adapter_adds_its_product_to_the_weights(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model", fields())
    additions = save_adapter(tmp_path / "adapter", model)
    rng = random.Random(0)
    prompt = [rng.randrange(101) for _ in range(150)]
    # One place more than adapters: vLLM's CPU kernels give requests without one what is in the last place (0.32).
    with engine(tmp_path / "model", enable_lora=True, max_lora_rank=RANK, max_loras=2) as llm:
        adapter = LoRARequest("adapter", 1, str(tmp_path / "adapter"))
        # vLLM cannot score prompts where an adapter may change the output head.
        adapted, plain = generate(llm, [prompt, prompt], [90, 90], score_prompt=False, lora=[adapter, None])
    expected_plain = [reference_logprobs(model, scored.ids) for scored in (adapted, plain)]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in additions:
                weight.add_(additions[name])
    assert largest_difference(plain, expected_plain[1]) < 2e-4
    assert largest_difference(adapted, expected_plain[0]) > 0.1
    assert largest_difference(adapted, reference_logprobs(model, adapted.ids)) < 2e-4
