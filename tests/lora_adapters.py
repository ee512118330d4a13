"""Small LoRA adapters in PEFT's format for a checkpoint folder, random but the same every time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from engine.adapter_files import CONFIG, WEIGHTS, header

PROJECTIONS = ("q_proj", "v_proj", "up_proj", "down_proj")


def save_adapter(folder: Path, model: Path, *, seed: int = 1, rank: int = 4, **config: Any) -> Path:
    """An adapter for all layers of `model`, strong enough to change what is greedily drawn."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in header(model / "model.safetensors").items():
        if name.endswith(tuple(f"{one}.weight" for one in PROJECTIONS)):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = random.normal(size=(rank, shape[1])).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = random.normal(size=(shape[0], rank)).astype(np.float32) * 0.05
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": PROJECTIONS, "bias": "none"}
    (folder / CONFIG).write_text(json.dumps(fields | config))
    return folder
