"""What is wrong with a model folder is said in one line, before anything heavy is imported."""

from pathlib import Path

import pytest

from engine.checkpoint import ModelError, check_model
from tests.engine.conftest import MODEL


def test_the_embedded_checkpoint_and_hub_ids_pass() -> None:
    check_model(str(MODEL))
    check_model("LGAI-EXAONE/EXAONE-4.0-1.2B")


@pytest.mark.parametrize("model", ["/nowhere", "./nowhere", "models/nowhere/deep", "~/nowhere-at-all", "nowhere/"])
def test_a_missing_folder(model: str) -> None:
    with pytest.raises(ModelError, match="no model folder at"):
        check_model(model)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "holds no config.json"),
        ("{", "is not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "lacks architectures and model_type"),
        ('{"architectures": ["Exaone4ForCausalLM"]}', "lacks model_type"),
        ('{"architectures": ["Exaone4ForCausalLM"], "model_type": "exaone4"}', "holds no weights"),
    ],
)
def test_a_spoilt_folder(tmp_path: Path, config: str | None, words: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=words) as caught:
        check_model(str(tmp_path))
    assert "\n" not in str(caught.value)
