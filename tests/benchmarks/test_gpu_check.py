"""What runs on a machine with a GPU, as far as one without can tell: stages, their limits, and what is packed."""

import re
import tomllib
from pathlib import Path

import pytest

from benchmarks.gpu import pack
from benchmarks.gpu.check import STAGES, Stage, run
from benchmarks.gpu.servers import compiled_late
from engine.defaults import Machine

ROOT = Path(__file__).parents[2]
ON_THE_MACHINE = {"httpx", "jinja2", "prometheus-client", "tokenizers"}
"""With torch and transformers."""


@pytest.fixture
def finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that finds two things."""
    (tmp_path / "finds_two.py").write_text("print('RESULT a: 1')\nprint('more')\nprint('RESULT b: 2')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "finds_two"


def test_a_stage_tells_what_it_found(tmp_path: Path, finds: str) -> None:
    told = run("one", Stage(60, ((finds,),)), tmp_path)
    assert (told["stage"], told["exit"], told["found"], told["tail"]) == ("one", 0, ["a: 1", "b: 2"], [])
    assert (tmp_path / "one.log").read_text().count("RESULT") == 2


def test_a_stage_that_fails_shows_its_end_and_the_next_command_runs(tmp_path: Path, finds: str) -> None:
    told = run("two", Stage(60, (("no_such_module_here",), (finds,))), tmp_path)
    assert (told["exit"], told["found"]) == (1, ["a: 1", "b: 2"])
    assert any("no_such_module_here" in line for line in told["tail"])


def test_a_stage_over_its_limit_ends(tmp_path: Path) -> None:
    assert run("three", Stage(0, (("http.server", "0"),)), tmp_path)["exit"] is None


def test_without_a_gpu_a_stage_that_needs_one_says_so(
    tmp_path: Path, finds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "detect", lambda: Machine("cpu", (0,), 1 << 30))
    told = run("four", Stage(60, ((finds,),), needs_gpu=True), tmp_path)
    assert (told["exit"], told["found"]) == (1, ["not run: there is no GPU here"])


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_runs_modules_that_are_there(name: str) -> None:
    for module, *_ in STAGES[name].commands:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_all_that_the_front_end_imports_is_packed_and_locked() -> None:
    dependencies = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    assert dependencies - ON_THE_MACHINE <= set(pack.PACKAGES)
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements" / "cuda.txt").read_text(), re.MULTILINE))
    assert set(pack.PACKAGES) <= locked


def test_kernels_that_are_compiled_after_ready_are_told() -> None:
    kernel = "WARNING jit_monitor: Triton kernel JIT compilation during inference: _topk_topp_kernel"
    log = f"{kernel}\nReady after 33 s at http://127.0.0.1:8102 (twogear-tiny)\nfine\n{kernel}\n"
    assert compiled_late(log) == [kernel]
    assert compiled_late(f"{kernel}\n") == []


def test_the_front_end_in_rust_is_packed_and_travels_last() -> None:
    assert not pack.DROPPED.match(pack.RUST)
    assert pack.DROPPED.match("vllm/_qutlass_C.abi3.so")
    archives = [Path(f"{name}.tar.xz") for name in ("rust", "kernels")]
    assert max(archives, key=pack._is_rust).name == "rust.tar.xz"
