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
    model = model_files.build(config, seed=5)
    for name, weight in model.named_parameters():
        if name.endswith("_proj.weight"):
            weight.data *= 20  # as after training; what fresh weights make is small beside the norms' epsilon
    model_files.save(model, folder)
    return folder


def test_weights_and_tokenizer_are_taken_over(older: Path, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(SMOKE, sft=msgspec.structs.replace(SMOKE.sft, start=str(older)))
    run = SftRun(recipe, tmp_path, torch.device("cpu"))
    source = Exaone4ForCausalLM.from_pretrained(older, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in run.model.state_dict().items())
    for name in tokenizer_files.FILES:
        assert (tmp_path / name).read_bytes() == (older / name).read_bytes()


@pytest.mark.parametrize(
    "wider",
    [
        {"hidden_size": SMOKE.model.hidden_size + 32},
        {"heads": SMOKE.model.heads * 2},
        {"heads": SMOKE.model.heads * 2, "kv_heads": SMOKE.model.kv_heads * 2},
        {"intermediate_size": SMOKE.model.intermediate_size + 32},
        {"hidden_size": 160, "heads": SMOKE.model.heads * 3, "intermediate_size": 256},
    ],
)
def test_a_wider_model_starts_with_what_the_checkpoint_computes(older: Path, wider: dict[str, int]) -> None:
    source = Exaone4ForCausalLM.from_pretrained(older, dtype=torch.float32)
    config = model_files.build_config(
        msgspec.structs.replace(SMOKE.model, **wider), eos_token_id=2, pad_token_id=0, bos_token_id=1
    )
    model = model_files.build(config, seed=1)
    model_files.start_from(model, older)
    ids = torch.randint(SMOKE.model.vocabulary_size, (2, 3 * SMOKE.model.window))
    assert sum(one.numel() for one in model.parameters()) > sum(one.numel() for one in source.parameters())
    torch.testing.assert_close(model(ids).logits, source(ids).logits, atol=1e-3, rtol=1e-3)


def test_all_of_a_wider_model_learns(older: Path) -> None:
    """No new weight stays at a gradient of zero: after a few steps what is written is read, and the other way round."""
    config = model_files.build_config(
        msgspec.structs.replace(SMOKE.model, hidden_size=160, heads=SMOKE.model.heads * 2, intermediate_size=256),
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=1,
    )
    model = model_files.build(config, seed=1)
    model_files.start_from(model, older)
    ids = torch.arange(SMOKE.model.vocabulary_size)[None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.step()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).backward()
    for name, one in model.named_parameters():
        assert one.grad is not None
        assert one.grad.count_nonzero() > 0.9 * one.numel(), name


@pytest.mark.parametrize(
    "other", [{"hidden_size": 16}, {"layers": 8}, {"layers": 3}, {"intermediate_size": 32}, {"heads": 1}]
)
def test_another_shape_is_refused(older: Path, other: dict[str, int]) -> None:
    shape = msgspec.structs.replace(SMOKE.model, **other)
    config = model_files.build_config(shape, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|Missing key|Unexpected key|too few"):
        model_files.start_from(model_files.build(config, seed=1), older)


def test_a_start_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    text = Path("training/recipes/smoke.toml").read_text()
    recipe.write_text(text.replace("[sft]\n", f'[sft]\nstart = "{tmp_path}/nowhere"\n'))
    assert main(["train", "sft", "--recipe", str(recipe), "--run", str(tmp_path / "run")]) == 2
    assert "sft.start: there is no checkpoint in" in capsys.readouterr().err
