"""Going on from a checkpoint with another tokenizer: what both know is taken over, token by token."""

from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import Tokenizer
from transformers import Exaone4ForCausalLM

from server.cli import main
from training import model as model_files
from training import recipe as recipes
from training import tokenizer as tokenizer_files
from training.recipe import ModelRecipe

SIZE = recipes.load(Path("training/recipes/smoke.toml")).model


def sized(vocabulary_size: int) -> ModelRecipe:
    return msgspec.structs.replace(SIZE, vocabulary_size=vocabulary_size)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("older")
    tokenizer_files.save(tokenizer_files.train(400, seed=1), folder)
    config = model_files.build_config(sized(400), eos_token_id=2, pad_token_id=0, bos_token_id=1)
    model_files.save(model_files.build(config, seed=5), folder)
    return folder


def test_tokens_that_both_know_keep_their_rows(older: Path) -> None:
    tokenizer = tokenizer_files.train(500, seed=2)
    config = model_files.build_config(sized(500), eos_token_id=2, pad_token_id=0, bos_token_id=1)
    fresh, model = model_files.build(config, seed=6), model_files.build(config, seed=6)
    vocabulary = tokenizer.get_vocab()
    model_files.start_from(model, older, vocabulary)
    source = Exaone4ForCausalLM.from_pretrained(older, dtype=torch.float32).state_dict()
    known = Tokenizer.from_file(str(older / "tokenizer.json")).get_vocab()
    assert set(vocabulary) - set(known), "the test needs tokens of both kinds"
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for text, here in vocabulary.items():
            expected = source[name][known[text]] if text in known else fresh.state_dict()[name][here]
            assert torch.equal(model.state_dict()[name][here], expected)
    layers = [name for name in source if name.startswith("model.layers")]
    assert all(torch.equal(model.state_dict()[name], source[name]) for name in layers)


def test_another_shape_is_refused(older: Path) -> None:
    wider = msgspec.structs.replace(sized(400), intermediate_size=96)
    config = model_files.build_config(wider, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model_files.start_from(model_files.build(config, seed=1), older, {"[PAD]": 0})


def test_a_start_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    text = Path("training/recipes/smoke.toml").read_text()
    recipe.write_text(text.replace("[sft]\n", f'[sft]\nstart = "{tmp_path}/nowhere"\n'))
    assert main(["train", "sft", "--recipe", str(recipe), "--run", str(tmp_path / "run")]) == 2
    assert "sft.start: there is no checkpoint in" in capsys.readouterr().err
