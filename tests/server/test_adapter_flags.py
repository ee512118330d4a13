"""The flags of `twogear serve` for LoRA adapters: what they mean to the engine, and mistakes in one line at start."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.adapter_files import CONFIG, WEIGHTS
from server.cli import main
from server.commands import serve
from server.commands.arguments.adapters import VARIABLE
from server.core.adapters import base_warnings
from server.settings import EMBEDDED_MODEL, LoraModule
from tests.lora_adapters import save_adapter

TINY = str(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("flags") / "sql", EMBEDDED_MODEL)


def chosen(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, str]:
    """The engine options that `--show-defaults` names."""
    assert main(["serve", TINY, "--show-defaults", *flags]) == 0
    lines = [line.partition(": ")[0].split(" ", 1) for line in capsys.readouterr().out.splitlines()]
    return {line[0]: line[1] for line in lines}


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line that says what is wrong."""
    assert main(["serve", TINY, "--show-defaults", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--enable-lora"], {"--max-loras": "1", "--max-cpu-loras": "32", "--max-lora-rank": "16"}),
        (["--enable-lora", "--max-loras", "40", "--max-lora-rank", "64"],
         {"--max-loras": "40", "--max-cpu-loras": "40", "--max-lora-rank": "64"}),
        (["--lora-modules", "a=PATH", '{"name": "b", "path": "PATH", "base_model_name": "twogear-tiny"}'],
         {"--max-loras": "2", "--max-cpu-loras": "32", "--max-lora-rank": "16"}),
        (["--lora-modules", "a=PATH", "--lora-modules", "b=PATH", "--", "--max-loras=3", "--max_lora_rank", "8"],
         {"--max-cpu-loras": "32"}),
    ],
)  # fmt: skip
def test_what_the_engine_is_told(
    flags: list[str], options: dict[str, str], adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = chosen(capsys, *(flag.replace("PATH", str(adapter)) for flag in flags))
    expected = {"--enable-lora": "True", **options} if flags else {}
    assert {name: told[name] for name in told if "lora" in name} == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora-modules", "sql"], "'sql' is neither NAME=PATH nor"),
        (["--lora-modules", "=/x"], "needs a name and a path"),
        (["--lora-modules", '{"name": "a"}'], "neither NAME=PATH nor"),
        (["--lora-modules", '{"name": "a", "path": 3}'], "both texts"),
        (["--lora-modules", "a=/no/such/folder"], "a: there is no folder /no/such/folder"),
        (["--lora-modules", "a=PATH", "a=PATH"], "'a' is the name of another model"),
        (["--lora-modules", "twogear-tiny=PATH"], "'twogear-tiny' is the name of another model"),
        (["--lora-modules", '{"name": "a", "path": "PATH", "base_model_name": "big"}'], "for the model 'big'"),
        (["--max-loras", "0", "--enable-lora"], "--max-loras"),
        (["--max-lora-rank", "7", "--enable-lora"], "--max-lora-rank"),
        (["--max-lora-rank", "8"], "means nothing without --enable-lora or --lora-modules"),
        (["--enable-lora", "--max-loras", "2", "--", "--max-loras", "3"], "given twice"),
        (["--max-lora-rank", "1", "--lora-modules", "a=PATH"], "an adapter has rank 4; --max-lora-rank is 1"),
        (["--lora-modules", "a=PATH", "--", "--max-lora-rank=1"], "an adapter has rank 4; --max-lora-rank is 1"),
    ],
)  # fmt: skip
def test_mistakes_are_told_at_start(
    flags: list[str], words: str, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, *(flag.replace("PATH", str(adapter)) for flag in flags))


@pytest.mark.parametrize(
    ("flags", "environment", "allowed"),
    [
        ([], {}, False),
        (["--allow-runtime-lora-updating"], {}, True),
        ([], {VARIABLE: "1"}, True),
        ([], {VARIABLE: " True "}, True),
        ([], {VARIABLE: "0"}, False),
    ],
)
def test_who_allows_requests_to_load_adapters(flags: list[str], environment: dict[str, str], *, allowed: bool) -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    assert serve.settings_of(parser.parse_args(flags), dict(environment)).allow_lora_updates == allowed


def changed(folder: Path, how: str) -> None:
    """Spoils a good adapter in one way."""
    weights, config = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    if how == "no config":
        (folder / CONFIG).unlink()
        return
    if how == "no weights":
        (folder / WEIGHTS).unlink()
        return
    fields: dict[str, Any] = {
        "no JSON": "{",
        "no object": [],
        "no LoRA": {"peft_type": "IA3"},
        "no rank": {"r": "four"},
        "large": {"r": 600},
        "large for one": {"rank_pattern": {"up_proj": 4096}},
    }
    if how in fields:
        new = fields[how]
        (folder / CONFIG).write_text(new if isinstance(new, str) else json.dumps(new and config | new))
        return
    if how == "layers":
        first = next(name for name in weights if ".layers.7." in name)
        weights[first.replace(".layers.7.", ".layers.8.")] = weights[first]
    if how == "width":
        weights = {name: np.tile(matrix, (1, 2)) if "lora_A" in name else matrix for name, matrix in weights.items()}
    if how == "ranks":
        weights = {name: matrix[:3] if "lora_A" in name else matrix for name, matrix in weights.items()}
    renamed = {"module": ("up_proj", "c_fc"), "other model": ("model.layers", "transformer.h")}.get(how, ("", ""))
    save_file({name.replace(*renamed): matrix for name, matrix in weights.items()}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no config", "holds no adapter_config.json"),
        ("no weights", "holds no adapter_model.safetensors"),
        ("no JSON", "is not valid JSON"),
        ("no object", "must be a JSON object"),
        ("no LoRA", "peft_type must be LORA, not 'IA3'"),
        ("no rank", "must be whole numbers above 0"),
        ("large", "rank 600; the engine takes at most 512"),
        ("large for one", "rank 4096; the engine takes at most 512"),
        ("module", "this one has no model.layers.0.mlp.c_fc"),
        ("other model", "made for another model: this one has no transformer.h.0."),
        ("layers", "this one has no model.layers.8."),
        ("ranks", "is of rank 3 in one of its matrices and of rank 4 in the other"),
        ("width", "has 512 inputs here, and 1024 there"),
    ],
)
def test_adapters_that_do_not_fit(how: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_adapter(tmp_path / "bad", EMBEDDED_MODEL)
    changed(folder, how)
    assert words in refused(capsys, "--lora-modules", f"bad={folder}")


def test_one_made_from_another_model_is_warned_of(tmp_path: Path) -> None:
    """A name alone is no proof: it may fit, as an adapter of a base model fits what was trained from that."""
    bases = {"same": "makers/Twogear-Tiny", "other": "makers/giant", "none": None}
    modules = [
        LoraModule(name, str(save_adapter(tmp_path / name, EMBEDDED_MODEL, base_model_name_or_path=base)))
        for name, base in bases.items()
    ]
    (warning,) = base_warnings([*modules, LoraModule("hub", "makers/adapter")], TINY)
    assert warning.startswith("The adapter other says that it was made from makers/giant")


def test_an_alias_is_nobody_elses_name(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "twogear-tiny:reasoning"
    assert main(["serve", TINY, "--port", "0", "--lora-modules", f"{name}={adapter}"]) == 2
    assert f"{name!r} would be the name of two models" in capsys.readouterr().err
