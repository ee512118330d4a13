"""The stages for a GPU machine, run through on this one: quickly, with a scripted engine or kernels in Python."""

import itertools
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.gpu import servers
from benchmarks.gpu.check import STAGES, run
from server.settings import EMBEDDED_MODEL

IMPORTS_VLLM = pytest.mark.filterwarnings("ignore")
"""What torch and vLLM deprecate of each other is not for tests to fail on."""
SCRIPTED = [sys.executable, "-m", "tests.scripted_process"]


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the results of `benchmarks.gpu.servers` lie, whose server has an engine that plays a script."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(servers, "checkpoint", lambda _: EMBEDDED_MODEL)
    monkeypatch.setitem(servers.QUESTION, "max_tokens", 40)
    bench = servers.TWOGEAR
    start = servers._twogear

    def twogear(folder: Path, port: int) -> list[str]:
        return [*SCRIPTED, *start(folder, port)[len(bench) :]]

    monkeypatch.setattr(servers, "_twogear", twogear)
    return tmp_path


def found(told: str) -> dict[str, str]:
    """What the stage found, by name."""
    return dict(re.findall(r"^RESULT (.+?): (.*)$", told, re.MULTILINE))


@pytest.mark.usefixtures("scripted")
def test_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TWOGEAR_CHECK_BUDGETS", "5")
    servers.answers()
    told = found(capsys.readouterr().out)
    for mode in ("standard", "reasoning"):
        for name in (f"{mode} at 0", f"{mode} at 1.0", f"schema {mode}"):
            assert "error" not in told[f"answers {name}"]
    assert "logprobs" in told["answers log-probabilities"]
    assert told["answers budgets"].startswith("5 of 5 kept, ")
    assert told["twogear-embedded ended"] == "exit code 0"


@pytest.mark.usefixtures("scripted")
def test_limits(capsys: pytest.CaptureFixture[str]) -> None:
    servers.limits()
    told = found(capsys.readouterr().out)
    assert all("content" in told[f"limits {name}"] for name in ("plain", "plain again", "and again"))


@pytest.mark.usefixtures("scripted")
def test_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TWOGEAR_CHECK_SERVERS", "twogear")
    monkeypatch.setenv("TWOGEAR_CHECK_LOADS", "1,1,4 8,16,8")
    servers.speed()
    told = found(capsys.readouterr().out)
    figures = json.loads(told["speed twogear 8,16,8"])["figures"]
    assert figures["failed"] == 0
    assert figures["tokens_per_second"] > 0
    assert "speed twogear 1,1,4" not in told  # it warms up


def test_what_peers_are_started_with() -> None:
    assert STAGES["speed"].commands == (("benchmarks.gpu.servers", "speed"),)
    assert (Path(servers.vllm_file()).parent / "entrypoints" / "openai" / "api_server.py").exists()


@IMPORTS_VLLM
@pytest.mark.parametrize("name", ["parity", "types", "large"])
def test_vllm_knows_the_options_of_parity(name: str) -> None:
    from engine.loading import _parse

    for _, model, *rest in STAGES[name].commands:
        assert model in {"embedded", "large"}
        _parse(str(EMBEDDED_MODEL), rest[1:], ())


class _PagedAttention(ModuleType):
    """In the place of vLLM's FA3: by the tables alone, a token at a time."""

    @staticmethod
    def flash_attn_varlen_func(**given: Any) -> None:
        (length,), (pages,), window = (
            given["seqused_k"].tolist(),
            given["block_table"].tolist(),
            given["window_size"][0],
        )
        keys, values = (
            torch.cat([cache[page] for page in pages])[:length].double() for cache in (given["k"], given["v"])
        )
        new, heads, size = given["q"].shape
        for row, head in itertools.product(range(new), range(heads)):
            at, group = length - new + row, head * keys.shape[1] // heads
            seen = slice(0 if window < 0 else max(0, at - window), at + 1)
            weights = (keys[seen, group] @ given["q"][row, head].double() * size**-0.5).softmax(0)
            given["out"][row, head] = (weights @ values[seen, group]).to(given["out"].dtype)


def _keep(k: Any, v: Any, k_cache: Any, v_cache: Any, slots: Any, *_: Any) -> None:
    for new, cache in ((k, k_cache), (v, v_cache)):
        cache.view(-1, *cache.shape[2:])[slots] = new


@IMPORTS_VLLM
def test_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.gpu import kernels

    monkeypatch.setattr(kernels, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("vllm._custom_ops.reshape_and_cache_flash", _keep)
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn", _PagedAttention("vllm.vllm_flash_attn"))
    kernels.main()
    told = found(capsys.readouterr().out)
    assert len(told) == 6
    assert all(float(error.removeprefix("relative error ")) < 5e-3 for error in told.values()), told


@IMPORTS_VLLM
def test_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.host import steps

    target = tmp_path / "host.json"
    arguments = ["steps", "--streams", "1,3", "--rounds", "1", "--steps", "2", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", arguments)
    steps.main()
    assert len(re.findall(r"^\|", capsys.readouterr().out, re.MULTILINE)) == 2 + len(steps.WAYS)
    results = json.loads(target.read_text())["results"]
    assert {(one["streams"], one["way"]) for one in results} == {(n, way.name) for n in (1, 3) for way in steps.WAYS}


@pytest.mark.engine
def test_parity(tmp_path: Path) -> None:
    """The real engine beside transformers: as close as the number format lets it be."""
    command = STAGES["parity"].commands[-1]
    assert command[-1] == "float32"
    told = run("parity", STAGES["parity"]._replace(seconds=500, commands=(command,)), tmp_path)
    assert told["exit"] == 0, told["tail"]
    (gaps,) = (line for line in told["found"] if "Twogear torch.float32" in line)
    assert float(re.findall(r"largest ([\d.e+-]+)", gaps)[0].rstrip(",")) < 1e-2
