"""Checkpoints of small random models, and what transformers scores with them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import PreTrainedModel

from model_impl.exaone4.config import canonical_fields
from tests.model_impl.config_fields import Fields


def save_checkpoint(folder: Path, config: Fields, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Writes a random model, its config.json just as given; returns transformers' model of the same weights."""
    # transformers' own config class: what ours makes of a dialect has to be what transformers takes as canonical.
    reference_config = transformers.Exaone4Config(**canonical_fields(config), initializer_range=0.3)
    torch.manual_seed(0)
    model: Any = transformers.Exaone4ForCausalLM(reference_config)  # type: ignore[no-untyped-call, unused-ignore]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # ones by default, which would hide a norm that is not loaded
                weight.uniform_(0.5, 1.5)
    model.to(dtype).eval().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    return cast("PreTrainedModel", model)


def reference_logprobs(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """The log-probability that transformers gives each id after the first, given those before it: (len(ids) - 1)."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits[:-1].float().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
