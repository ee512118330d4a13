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
from engine.weights import choose, default_weights, held_weights, start_line
from model_impl.weights import VARIABLE, Format
from server.app import create_app
from server.cli import main
from server.cli_errors import UsageError
from server.commands.arguments import weights as arguments
from server.model_files import with_weights
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
    settings = Settings(model="Qwen/Qwen3-0.6B", weights="int8", weights_asked="int8")
    with pytest.raises(UsageError, match=r"^--weights int8 is for Exaone4ForCausalLM; Qwen/Qwen3-0.6B is a Qwen3For"):
        with_weights(settings, fetched, [])
    assert with_weights(replace(settings, weights="bf16"), fetched, []).weights == "bf16"


ODD: Any = {"weights": {"type": []}}


def test_too_little_memory_to_quantize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(checkpoint(tmp_path))
    asked = Settings(model=str(folder), weights="int8", weights_asked="int8")
    with monkeypatch.context() as context:
        context.setattr(Machine, "detect", lambda: Machine("cpu", (0,), available_memory=1 << 20))
        with pytest.raises(UsageError, match=r"0\.0 GiB of memory are free, too few .* GiB with int4; free") as why:
            with_weights(asked, folder, [])
        assert "\n" not in str(why.value)
        assert with_weights(replace(asked, weights="bf16"), folder, []).weights == "bf16"
    assert with_weights(asked, folder, []).weights == "int8"


def test_each_of_several_engines_has_its_part_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(checkpoint(tmp_path))
    asked = Settings(model=str(folder), weights="int4", weights_asked="int4")
    monkeypatch.setattr(Machine, "detect", lambda: Machine("cpu", (0, 1), available_memory=4 << 20))
    assert with_weights(asked, folder, []).weights == "int4"
    with pytest.raises(UsageError, match="are free, too few"):
        with_weights(replace(asked, data_parallel_size=2), folder, [])


SIZES: dict[Format, int] = {"bf16": 4 * GIB, "int8": 2 * GIB, "int4": GIB}
VNNI = {"avx512f", "avx512_vnni"}


@pytest.mark.parametrize(
    ("sizes", "options", "flags", "chosen", "why"),
    [
        (SIZES, [], VNNI, "int8", "waits for 2.0 GiB to be read for each token, not for 4.0 GiB"),
        (SIZES, ["--max-model-len", "4096"], VNNI, "int8", "waits for 2.0 GiB"),
        (SIZES, [], {"avx2"}, "bf16", "this CPU has no avx512_vnni"),
        (SIZES, ["--dtype=float32"], VNNI, "bf16", "fewer bits are not chosen beside --dtype"),
        (SIZES, ["--enable-lora", "--max-loras", "2"], VNNI, "bf16", "fewer bits are not chosen beside --enable-lora"),
        (dict.fromkeys(SIZES, 7 << 20), [], VNNI, "bf16", "a model of 7 MiB is read fast enough"),
    ],
)
def test_the_default_depends_on_model_cpu_and_options(
    sizes: dict[Format, int], options: list[str], flags: set[str], chosen: Format, why: str
) -> None:
    found = choose(sizes, options, flags)
    assert found.weights == chosen
    assert why in found.reason


@pytest.mark.parametrize(("asked", "held"), [(None, "int8"), ("bf16", "bf16"), ("int4", "int4")])
def test_the_engine_is_told_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Format | None, held: Format
) -> None:
    folder = Path(checkpoint(tmp_path))
    monkeypatch.setenv(VARIABLE, asked or "bf16")
    monkeypatch.setattr("engine.weights.LARGE", 1 << 20)
    monkeypatch.setattr("server.model_files.cpu_flags", lambda: VNNI)
    settings = Settings(model=str(folder), weights=asked or "bf16", weights_asked=asked)
    found = with_weights(settings, folder, [])
    assert (found.weights, os.environ[VARIABLE], found.system_fingerprint) == (held, held, f"twogear-{held}")
    monkeypatch.setattr(Machine, "detect", lambda: Machine("gpu", (0,), available_memory=1 << 40))
    assert with_weights(settings, folder, []).weights == (asked or "bf16")


def test_nothing_is_chosen_for_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "int8")
    monkeypatch.setattr("engine.weights.LARGE", 1 << 20)
    monkeypatch.setattr("server.model_files.cpu_flags", lambda: VNNI)
    folder = Path(checkpoint(tmp_path, architectures=["LlamaForCausalLM"]))
    assert with_weights(Settings(model=str(folder)), folder, []).weights == os.environ[VARIABLE] == "bf16"


def test_the_start_says_how_weights_are_held_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(checkpoint(tmp_path))

    def line(held: str, available: int = 16 * GIB, at: Path = folder) -> str:
        return start_line(at, held, default_weights(at, [], VNNI).reason, available)

    small = r"Weights: bf16 \(\d+ MiB\), the default: a model of \d+ MiB is read fast enough\."
    assert re.fullmatch(small, line("bf16"))
    assert re.fullmatch(
        rf"{small} Only 2\.0 GiB of memory are free: --weights int8 \(3 MiB\) fits better\.",
        line("bf16", 2 * GIB + (6 << 20)),
    )
    assert line("bf16", GIB).endswith("Only 1.0 GiB of memory are free, too few for any format.")
    assert re.fullmatch(r"Weights: int4 \(\d+ MiB\), as you have asked\.", start_line(folder, "int4", "", 16 * GIB))
    monkeypatch.setattr("engine.weights.LARGE", 1 << 20)
    assert re.fullmatch(
        r"Weights: int8 \(3 MiB\), the default: one stream waits for 3 MiB to be read for each token, not for 7 MiB\. "
        r"--weights bf16 for those of the checkpoint\.",
        line("int8"),
    )
    quantized = Path(checkpoint(tmp_path, quantization_config={"quant_method": "awq", "bits": 4}))
    assert line("awq-int4", 1, quantized) == "Weights: awq-int4, as checkpoint and engine options say."
    other = Path(checkpoint(tmp_path, architectures=["LlamaForCausalLM"]))
    assert line("bf16", 1, other) == "Weights: bf16, as checkpoint and engine options say."


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
