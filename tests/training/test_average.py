"""The mean of checkpoints: of every tensor, in the dtype of the first, and only of checkpoints that fit together."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Exaone4ForCausalLM

from training.average import WEIGHTS, average

EMBEDDED = Path("models/twogear-tiny")


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    """Three checkpoints of the embedded one's shape."""
    folders = [tmp_path / str(number) for number in range(3)]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        for file in EMBEDDED.glob("*.json"):
            (folder / file.name).write_bytes(file.read_bytes())
        generator = torch.Generator().manual_seed(seed)
        weights = {
            name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            for name, tensor in load_file(EMBEDDED / WEIGHTS).items()
        }
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folders


def test_each_tensor_is_the_mean(checkpoints: list[Path], tmp_path: Path) -> None:
    average(checkpoints, tmp_path / "mean")
    found = load_file(tmp_path / "mean" / WEIGHTS)
    all_weights = [load_file(folder / WEIGHTS) for folder in checkpoints]
    for name, tensor in found.items():
        expected = torch.stack([weights[name].double() for weights in all_weights]).mean(0)
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.double(), expected, rtol=2**-8, atol=2**-20)
    assert found.keys() == all_weights[0].keys()


def test_configs_and_tokenizer_are_those_of_the_checkpoints_and_no_card_is(tmp_path: Path) -> None:
    average([EMBEDDED, EMBEDDED], tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in EMBEDDED.glob("*.json")} | {WEIGHTS}


def test_no_checkpoint_is_written_over(checkpoints: list[Path]) -> None:
    before = (checkpoints[0] / WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match="is one of the checkpoints"):
        average(checkpoints, checkpoints[0])
    assert (checkpoints[0] / WEIGHTS).read_bytes() == before


def test_the_mean_of_one_checkpoint_is_that_checkpoint(tmp_path: Path) -> None:
    average([EMBEDDED, EMBEDDED], tmp_path)
    embedded, mean = Exaone4ForCausalLM.from_pretrained(EMBEDDED), Exaone4ForCausalLM.from_pretrained(tmp_path)
    for name, tensor in embedded.state_dict().items():
        assert torch.equal(mean.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("name", "message"), [("config.json", "config.json of .* differ"), (WEIGHTS, f"has no {WEIGHTS}")]
)
def test_what_does_not_belong_together_is_told(
    checkpoints: list[Path], tmp_path: Path, name: str, message: str
) -> None:
    if name == WEIGHTS:
        (checkpoints[1] / name).unlink()
    else:
        (checkpoints[1] / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        average(checkpoints, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    command = [sys.executable, "-m", "training.average", str(tmp_path / "mean"), *map(str, checkpoints)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2
