"""A model that is named by a GGUF file: what the commands make of it before an engine starts."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engine.checkpoint import ModelError, check_model, weight_bytes
from engine.defaults import engine_defaults
from model_impl.weights import DEFAULT, VARIABLE
from server.cli import main
from server.commands.arguments.gguf import opened
from server.model_files import load_format, with_weights
from server.modes.mode import Modes
from server.reloading import load_profile_and_keys
from server.settings import Settings
from tests.model_impl.gguf_files import q4_k_m, write
from tests.server.test_cli import error_of


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(VARIABLE, DEFAULT)  # the command writes it
    path = tmp_path / "Small-Q4_K_M.gguf"
    layers = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    write(path, "exaone4", q4_k_m, layers)
    return path


def started(settings: Settings) -> Settings:
    """As `twogear serve` has them once it has looked at the model."""
    settings = opened(settings)
    return with_weights(settings, Path(settings.model), [])


def test_a_file_becomes_a_folder_under_its_own_name(file: Path) -> None:
    settings = started(Settings(model=str(file)))
    assert settings.model_name == "Small-Q4_K_M"
    assert opened(Settings(model=str(file), served_model_name="mine")).model_name == "mine"
    assert opened(settings) is settings
    assert settings.weights == "gguf"
    assert settings.system_fingerprint == "twogear-gguf"
    check_model(settings.model)
    assert weight_bytes(Path(settings.model)) == file.stat().st_size
    chosen = {choice.name: choice.value for choice in engine_defaults(settings.model)}
    assert chosen["--load-format"] == "twogear_gguf"
    file.unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        check_model(settings.model)


def test_both_modes_are_found_in_the_files_template(file: Path) -> None:
    settings = opened(Settings(model=str(file)))
    folder = Path(settings.model)
    profile, _ = load_profile_and_keys(folder, settings)
    fmt = load_format(folder, profile, settings)
    modes = Modes.of(profile, fmt).by_name
    assert list(modes) == ["standard", "reasoning"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    asked = [{"role": "user", "content": "Hello"}]
    prompts = [tokenizer.decode(fmt.render(asked, mode.style), skip_special_tokens=False) for mode in modes.values()]
    assert prompts[0].endswith("<think>\n\n</think>\n\n")
    assert prompts[1] == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n"


def test_weights_are_in_the_files_own_bits(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is quantized" in error_of(["serve", str(file), "--weights", "int8"], capsys)


def test_floats_are_a_checkpoint_like_any_other(file: Path) -> None:
    write(file, "exaone4", "BF16")
    assert started(Settings(model=str(file))).weights == "bf16"
    asked = Settings(model=str(file), weights="int4", weights_asked="int4")
    assert started(asked).weights == "int4"


def test_its_plan(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(file), "--memory", "1GiB", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["context"] == 4096
    assert 0.6 < plan["weight_bytes"] / plan["parameters"] < 0.8  # most in 5 bits, the head in 8.5
    assert main(["plan", str(file), "--memory", "1GiB"]) == 0
    assert " gguf\n" in capsys.readouterr().out
