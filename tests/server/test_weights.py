"""`--weights`: what is refused before an engine starts, and that clients and operators are told the format."""

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from model_impl.weights import VARIABLE
from server.app import create_app
from server.cli import main
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
    assert "is quantized: leave it out, or use --weights bf16" in message
    assert os.environ[VARIABLE] == "int8"  # what an engine would have been told


@pytest.mark.parametrize("weights", ["bf16", "int4"])
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
        metrics = (await client.get("/metrics")).text
    assert f'twogear_weights_info{{format="{weights}"}} 1.0' in metrics
