"""Going on from a checkpoint: its weights and its tokenizer are taken over, or it is said why not."""

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import Exaone4ForCausalLM

from server.cli import main
from training import model as model_files
from training import recipe as recipes
from training import tokenizer as tokenizer_files
from training.sft import SftRun

SMOKE = recipes.load(Path("training/recipes/smoke.toml"))


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("older")
    tokenizer_files.save(tokenizer_files.train(SMOKE.model.vocabulary_size, seed=1), folder)
    config = model_files.build_config(SMOKE.model, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    model_files.save(model_files.build(config, seed=5), folder)
    return folder


def test_weights_and_tokenizer_are_taken_over(older: Path, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(SMOKE, sft=msgspec.structs.replace(SMOKE.sft, start=str(older)))
    run = SftRun(recipe, tmp_path, torch.device("cpu"))
    source = Exaone4ForCausalLM.from_pretrained(older, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in run.model.state_dict().items())
    for name in tokenizer_files.FILES:
        assert (tmp_path / name).read_bytes() == (older / name).read_bytes()


def test_another_shape_is_refused(older: Path) -> None:
    wider = msgspec.structs.replace(SMOKE.model, intermediate_size=96)
    config = model_files.build_config(wider, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model_files.start_from(model_files.build(config, seed=1), older)


def test_a_start_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    text = Path("training/recipes/smoke.toml").read_text()
    recipe.write_text(text.replace("[sft]\n", f'[sft]\nstart = "{tmp_path}/nowhere"\n'))
    assert main(["train", "sft", "--recipe", str(recipe), "--run", str(tmp_path / "run")]) == 2
    assert "sft.start: there is no checkpoint in" in capsys.readouterr().err
