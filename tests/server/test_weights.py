"""`--weights`: what is refused before an engine starts, and that clients and operators are told the format."""

import argparse
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from engine.defaults import GIB, Machine
from engine.weights import choose, held_weights, start_line
from model_impl.weights import VARIABLE, Format
from server.app import create_app
from server.cli import main
from server.cli_errors import UsageError
from server.commands.arguments import weights as arguments
from server.launch import with_weights
from server.modes.profile import Profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always, body

TINY = str(EMBEDDED_MODEL)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command tells its engine in the environment is taken back."""
    monkeypatch.setenv(VARIABLE, "bf16")


def error_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("twogear: error: ")


def checkpoint(folder: Path, **fields: Any) -> str:
    config = json.loads((EMBEDDED_MODEL / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"x")
    return str(folder)


def test_a_format_that_there_is_not(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "int3" in error_of(["serve", TINY, "--weights", "int3"], capsys)
    monkeypatch.setenv(VARIABLE, "q4")
    assert error_of(["serve", TINY], capsys) == f"{VARIABLE} must be one of bf16, int8, int4; it is 'q4'"


def test_checkpoints_that_cannot_be_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = checkpoint(tmp_path, architectures=["LlamaForCausalLM"], model_type="llama")
    assert "is a LlamaForCausalLM" in error_of(["serve", other, "--weights", "int4"], capsys)
    quantized = checkpoint(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    message = error_of(["serve", quantized, "--weights", "int8"], capsys)
    assert "is quantized (quantization_config.quant_method gptq): leave it out, or use --weights bf16" in message
    assert os.environ[VARIABLE] == "int8"  # what an engine would have been told


def test_other_models_of_the_hub_are_refused_once_their_configuration_is_there(tmp_path: Path) -> None:
    fetched = Path(checkpoint(tmp_path, architectures=["Qwen3ForCausalLM"], model_type="qwen3"))
    settings = Settings(model="Qwen/Qwen3-0.6B", weights="int8")
    with pytest.raises(UsageError, match=r"^--weights int8 is for Exaone4ForCausalLM; Qwen/Qwen3-0.6B is a Qwen3For"):
        with_weights(settings, fetched, [])
    assert with_weights(replace(settings, weights="bf16"), fetched, []).weights == "bf16"


ODD: Any = {"weights": {"type": []}}


def test_too_little_memory_to_quantize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(checkpoint(tmp_path))
    asked = Settings(model=str(folder), weights="int8")
    with monkeypatch.context() as context:
        context.setattr(Machine, "detect", lambda: Machine("cpu", (0,), available_memory=1 << 20))
        with pytest.raises(UsageError, match=r"0\.0 GiB of memory are free, too few .* GiB with int4; free") as why:
            with_weights(asked, folder, [])
        assert "\n" not in str(why.value)
        assert with_weights(replace(asked, weights="bf16"), folder, []).weights == "bf16"
    assert with_weights(asked, folder, []).weights == "int8"


def test_each_of_several_engines_has_its_part_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(checkpoint(tmp_path))
    asked = Settings(model=str(folder), weights="int4")
    monkeypatch.setattr(Machine, "detect", lambda: Machine("cpu", (0, 1), available_memory=4 << 20))
    assert with_weights(asked, folder, []).weights == "int4"
    with pytest.raises(UsageError, match="are free, too few"):
        with_weights(replace(asked, data_parallel_size=2), folder, [])


SIZES: dict[Format, int] = {"bf16": 4 * GIB, "int8": 2 * GIB, "int4": GIB}
VNNI = {"avx512f", "avx512_vnni"}


@pytest.mark.parametrize(
    ("sizes", "available", "flags", "chosen", "why"),
    [
        (SIZES, 16 * GIB, VNNI, "int8", "waits for 2.0 GiB to be read for each token, not for 4.0 GiB"),
        (SIZES, 16 * GIB, {"avx2"}, "bf16", "this CPU has no avx512_vnni"),
        (SIZES, 6 * GIB, VNNI, "int8", "waits for 2.0 GiB"),
        (SIZES, 6 * GIB - 1, {"avx2"}, "int8", "bf16 would take 4.0 GiB, and 6.0 GiB of memory are free"),
        (SIZES, 4 * GIB - 1, VNNI, "int4", "bf16 would take 4.0 GiB, and 4.0 GiB of memory are free"),
        (SIZES, 3 * GIB - 1, VNNI, "bf16", "3.0 GiB of memory are free, too few for any format"),
        (dict.fromkeys(SIZES, 7 << 20), 16 * GIB, VNNI, "bf16", "a model of 7 MiB is read fast enough"),
    ],
)
def test_what_would_be_chosen_by_itself(
    sizes: dict[Format, int], available: int, flags: set[str], chosen: Format, why: str
) -> None:
    found = choose(sizes, available, flags)
    assert found.weights == chosen
    assert why in found.reason


def test_the_start_says_how_weights_are_held_and_why(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path))
    told = start_line(folder, "bf16", None, 16 * GIB, VNNI)
    assert re.fullmatch(r"Weights: bf16 \(\d+ MiB\), the default: a model of \d+ MiB is read fast enough\.", told)
    told = start_line(folder, "bf16", None, 2 * GIB + (6 << 20), VNNI)
    assert "the default. --weights int8 (3 MiB) may suit this machine better: bf16 would take 7 MiB" in told
    assert start_line(folder, "int4", "int4", 16 * GIB, VNNI).endswith(" MiB), as you have asked.")
    assert start_line(folder, "bf16", "bf16", 1, VNNI).endswith(" MiB), as you have asked.")
    quantized = Path(checkpoint(tmp_path, quantization_config={"quant_method": "awq", "bits": 4}))
    assert (
        start_line(quantized, "awq-int4", None, 1, VNNI) == "Weights: awq-int4, as checkpoint and engine options say."
    )
    other = Path(checkpoint(tmp_path, architectures=["LlamaForCausalLM"]))
    assert start_line(other, "bf16", None, 1, VNNI) == "Weights: bf16, as checkpoint and engine options say."


def test_what_was_asked_for_is_known() -> None:
    def asked(*argv: str, **environment: str) -> str | None:
        parser = argparse.ArgumentParser()
        arguments.add_arguments(parser)
        found = arguments.of_arguments(parser.parse_args(argv), environment)
        assert found["weights"] == environment[VARIABLE]
        return found["weights_asked"]

    assert asked() is None
    assert asked("--weights", "bf16") == "bf16"
    assert asked("--weights", "int8", **{VARIABLE: "int4"}) == "int8"
    assert asked(**{VARIABLE: "int4"}) == "int4"


W4A16 = {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}
FLOATS = {"weights": {"num_bits": 8, "type": "float"}}


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq-int4"),
        ({"quant_method": "awq", "w_bit": 4}, "awq-int4"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": W4A16}}, "compressed-tensors-int4"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": FLOATS}}, "compressed-tensors-float8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": FLOATS, "b": W4A16}}, "compressed-tensors"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": ODD}},
            "compressed-tensors",
        ),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "twogear_gguf"}, "gguf"),
        ({"quant_method": "a\nb"}, "quantized"),
        ({"bits": "many"}, "quantized"),
        (None, "bf16"),
    ],
)
def test_a_checkpoint_that_is_quantized_names_its_format(quantization: Any, named: str, tmp_path: Path) -> None:
    for place in ("quantization_config", "compression_config"):
        folder = Path(checkpoint(tmp_path, **{place: quantization}))
        settings = with_weights(Settings(model=str(folder)), folder, [])
        assert settings.weights == named
        assert settings.system_fingerprint == f"twogear-{named}"
    nested = Path(checkpoint(tmp_path, text_config={"quantization_config": quantization}))
    assert held_weights(nested, "bf16") == named


def test_a_format_that_an_engine_option_or_another_file_says(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path))
    assert held_weights(folder, "bf16", ["--dtype", "float16", "--quantization", "fp8"]) == "fp8"
    assert held_weights(folder, "bf16", ["--quantization=fp8"]) == "fp8"
    assert held_weights(folder, "bf16", ["--block-size", "32", "-q", "fp8"]) == "fp8"
    assert held_weights(folder, "bf16", ["--quantization"]) == "bf16"  # which vLLM refuses
    (folder / "hf_quant_config.json").write_text("{}")
    assert held_weights(folder, "bf16") == "modelopt"


def test_a_quantization_that_is_no_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(tmp_path, quantization_config="gptq")
    assert error_of(["serve", folder], capsys).endswith("config.json: quantization_config must be an object")


@pytest.mark.parametrize("weights", ["bf16", "int4", "gptq-int4"])
async def test_the_format_is_named(weights: Any, profile: Profile, fmt: ChatFormat) -> None:
    settings = Settings(model=TINY, weights=weights)
    engine = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    transport = httpx.ASGITransport(create_app(engine, settings, profile, fmt))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        model = (await client.get("/v1/models")).json()["data"][0]
        assert model["weights"] == weights
        chat = (await client.post("/v1/chat/completions", json=body(max_tokens=4))).json()
        assert chat["system_fingerprint"] == f"twogear-{weights}"
        streamed = await client.post("/v1/chat/completions", json=body(max_tokens=4, stream=True))
        first = json.loads(streamed.text.partition("data: ")[2].partition("\n")[0])
        assert first["system_fingerprint"] == f"twogear-{weights}"
        text = (await client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 4})).json()
        assert text["system_fingerprint"] == f"twogear-{weights}"
        metrics = (await client.get("/metrics")).text
    assert f'twogear_weights_info{{format="{weights}"}} 1.0' in metrics
