"""transformers and vLLM, each as it loads a model, get our reading of a config."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from model_impl.exaone4.architecture import GLOBAL, SLIDING, Architecture
from model_impl.exaone4.config import Exaone4Config, canonical_fields
from tests.model_impl.config_fields import fields

CONFIGS = Path(__file__).with_name("configs")


def test_the_string_dialect_is_why_this_exists() -> None:
    """Fails when transformers reads it itself: then this class can go."""
    config = json.loads((CONFIGS / "exaone-4.0-32b.json").read_text())
    with pytest.raises(TypeError):
        transformers.Exaone4Config(**config)
    assert Exaone4Config(**config).layer_types == [SLIDING, SLIDING, SLIDING, GLOBAL] * 16


@pytest.mark.parametrize("name", ["exaone-4.0-32b", "exaone-4.0-1.2b"])
def test_transformers_takes_the_canonical_form_unchanged(name: str) -> None:
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    canonical = canonical_fields(config)
    read = transformers.Exaone4Config(**canonical).to_dict()
    assert {name: read[name] for name in canonical if name != "torch_dtype"} == {
        name: value for name, value in canonical.items() if name != "torch_dtype"
    }
    assert Architecture.from_config(read) == Architecture.from_config(config)


@pytest.mark.parametrize("name", ["exaone-4.0-32b", "exaone-4.0-1.2b"])
def test_the_parameters_are_those_of_transformers_model(name: str) -> None:
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    with torch.device("meta"):
        model: Any = transformers.Exaone4ForCausalLM(Exaone4Config(**config))  # type: ignore[no-untyped-call, unused-ignore]
    assert Architecture.from_config(config).parameters == model.num_parameters()


def test_a_saved_config_is_read_again(tmp_path: Path) -> None:
    config = fields(layer_types=None, sliding_window_pattern="LLLG")
    Exaone4Config(**config).save_pretrained(tmp_path)
    assert Architecture.from_config(json.loads((tmp_path / "config.json").read_text())) == Architecture.from_config(
        config
    )


IN_A_FRESH_PROCESS = """
import json, sys
import model_impl
heavy = sorted({"torch", "transformers", "vllm"} & set(sys.modules))
from vllm.plugins import load_general_plugins
load_general_plugins()
model_impl.register()
heavy += sorted({"model_impl.exaone4.model"} & set(sys.modules))
from vllm.model_executor.models import ModelRegistry
from vllm.transformers_utils.config import get_config
model_class = ModelRegistry.models["Exaone4ForCausalLM"].load_model_cls()
config = get_config(sys.argv[1], trust_remote_code=False)
print(json.dumps([heavy, model_class.__module__, type(config).__module__, config.layer_types]))
"""


def test_vllm_finds_our_classes_by_the_entry_point_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields(layer_types=None, sliding_window_pattern="LLLG")))
    arguments = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=tmp_path)
    heavy, model_module, config_module, layer_types = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert (model_module, config_module) == ("model_impl.exaone4.model", "model_impl.exaone4.config")
    assert layer_types == [SLIDING] * 3 + [GLOBAL]
