"""`twogear plan`: the printed plan of the published models, and one clear line for what it cannot plan."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_impl.capacity import weight_bytes
from model_impl.exaone4.architecture import Architecture, ConfigError
from server.cli import main
from tests.model_impl.config_fields import fields

CONFIGS = Path(__file__).with_name("configs")
LARGE = str(CONFIGS / "exaone-4.0-32b.json")
SMALL = str(CONFIGS / "exaone-4.0-1.2b.json")

PLAN_OF_THE_32B = """\
32.00 billion parameters, 16 global layers, 48 that see 4096 tokens
memory     160.00 GiB
weights     59.61 GiB   bfloat16
pages      100.39 GiB

one request of 131072 tokens, 16 in a page, 2048 in flight:
  page group       layers   pages        bytes
  global               16    8192     8.00 GiB
  sliding              16     385   385.00 MiB
  sliding              16     385   385.00 MiB
  sliding              16     385   385.00 MiB
  together             64    9347     9.13 GiB
  without windows      64    8192    32.00 GiB

requests of 131072 tokens that fit at once:
  with windows         10   (11.00)
  without windows       3   (3.14)
  ratio                 3.51
"""


def plan_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    return plan


def test_the_32b(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", LARGE, "--memory", "160GiB", "--context", "131072"]) == 0
    assert capsys.readouterr().out == PLAN_OF_THE_32B


def test_without_sliding_layers_both_caches_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_json(capsys, SMALL, "--memory", "24GB")
    assert plan["context"] == 65536
    assert plan["uniform"] == plan["windowed"]
    # 30 layers of a key and a value for 8 heads of 64, in two bytes each
    assert plan["uniform"]["bytes_per_request"] == 65536 * 30 * 2 * 8 * 64 * 2
    assert plan["uniform"]["requests"] == (24 * 10**9 - plan["weight_bytes"]) // plan["uniform"]["bytes_per_request"]


def test_weights_that_leave_no_room(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_json(capsys, LARGE, "--memory", "40GiB")
    assert (plan["page_pool_bytes"], plan["windowed"]["requests"]) == (0, 0)


@pytest.mark.parametrize(("weights", "bits", "least"), [("int8", 8.5, 0.53), ("int4", 5, 0.34)])
def test_weights_in_fewer_bits(
    weights: str, bits: float, least: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_json(capsys, SMALL, "--memory", "24GB", "--weights", weights)
    whole = plan_json(capsys, SMALL, "--memory", "24GB")["weight_bytes"]
    assert bits / 16 <= plan["weight_bytes"] / whole
    assert least <= plan["weight_bytes"] / whole < least + 0.04  # the embedding has 8.5 bits
    monkeypatch.setenv("TWOGEAR_WEIGHTS", weights)
    assert plan_json(capsys, SMALL, "--memory", "24GB") == plan
    monkeypatch.setenv("TWOGEAR_WEIGHTS", "int3")
    assert main(["plan", SMALL, "--memory", "24GB"]) == 2
    assert "TWOGEAR_WEIGHTS must be one of bf16, int8, int4; it is 'int3'" in capsys.readouterr().err


def test_smaller_values_in_the_pages_hold_more(capsys: pytest.CaptureFixture[str]) -> None:
    by_dtype = {
        dtype: plan_json(capsys, LARGE, "--memory", "160GiB", "--kv-dtype", dtype)["windowed"]["bytes_per_request"]
        for dtype in ("fp8", "bfloat16", "float32")
    }
    assert by_dtype["float32"] == 2 * by_dtype["bfloat16"] == 4 * by_dtype["fp8"]


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4.125),
        ({"quant_method": "awq", "bits": 4, "group_size": -1}, 4),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, 8),
    ],
)
def test_quantized_projections_count_their_bits(quantization: dict[str, Any], bits: float) -> None:
    architecture = Architecture.from_config(fields())
    size = weight_bytes(architecture, fields(quantization_config=quantization), "bfloat16")
    assert size == 2 * architecture.other_parameters + int(architecture.linear_parameters * bits / 8)


@pytest.mark.parametrize("quantization", [{"quant_method": "new"}, {}, {"quant_method": "gptq"}])
def test_unknown_quantization_is_refused(quantization: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="quantization_config"):
        weight_bytes(Architecture.from_config(fields()), fields(quantization_config=quantization), "bfloat16")


def write_config(folder: Path, content: str) -> str:
    (folder / "config.json").write_text(content)
    return str(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("[]", "not a JSON object"),
        (json.dumps({"model_type": "llama"}), "only the EXAONE 4.0 architecture"),
        (json.dumps(fields(num_hidden_layers=None)), "no num_hidden_layers"),
        (json.dumps(fields(dtype="int3")), "dtype is 'int3'"),
        (json.dumps(fields(quantization_config={"quant_method": "new"})), "quant_method 'new'"),
    ],
)
def test_a_config_that_cannot_be_planned(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", write_config(tmp_path, content), "--memory", "1GiB"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "--memory", "1GiB"], "neither a folder, nor a config.json, nor a hub id"),
        ([str(CONFIGS), "--memory", "1GiB"], "has no config.json"),
        (["owner/unheard-of", "--memory", "1GiB"], "the hub gave no config.json"),
        ([LARGE, "--memory", "80 gallons"], "no size"),
        ([LARGE, "--memory", "80GiB", "--context", "131073"], "131072 positions"),
        ([LARGE, "--memory", "80GiB", "--page-size", "0"], "not a positive whole number"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_planning_loads_no_machinery() -> None:
    code = (
        "import sys; from server.cli import main; main(sys.argv[1:]); "
        "sys.exit(str({'torch', 'vllm', 'transformers', 'fastapi'} & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", code, "plan", LARGE, "--memory", "80GiB"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
