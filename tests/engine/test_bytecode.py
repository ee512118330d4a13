"""Compiled modules are kept where Python alone would compile them at every start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.bytecode import VARIABLE, bytecode_folder
from engine.defaults import Choice, use_environment

IMPORT_AFTERWARDS = """
import json, sys
from pathlib import Path
from engine.bytecode import keep_bytecode
keep_bytecode(Path(sys.argv[1]))
import module_of_the_test
print(json.dumps(module_of_the_test.__cached__))
"""


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of a package called vllm, in the place of the one that is installed."""
    module = tmp_path / "packages" / "vllm" / "v1" / "engine" / "llm_engine.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    (tmp_path / "packages" / "vllm" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    return module


def test_a_python_that_may_write_needs_no_folder(vllm: Path) -> None:
    assert bytecode_folder({}) is None


def test_a_python_that_is_told_not_to_write_gets_one_of_the_users(vllm: Path) -> None:
    told = {"PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": "/caches"}
    assert bytecode_folder(told) == Path("/caches/twogear/bytecode")


def test_what_the_installer_compiled_is_used(vllm: Path) -> None:
    compiled = vllm.parent / "__pycache__" / f"llm_engine.{sys.implementation.cache_tag}.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"")
    assert bytecode_folder({"PYTHONDONTWRITEBYTECODE": "1"}) is None


def test_the_place_that_the_user_names_stays(vllm: Path) -> None:
    assert bytecode_folder({"PYTHONDONTWRITEBYTECODE": "1", VARIABLE: "/elsewhere"}) is None


def test_modules_that_are_imported_afterwards_are_kept_there(tmp_path: Path) -> None:
    (tmp_path / "module_of_the_test.py").write_text("answer = 42\n")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tmp_path)}
    environment.pop(VARIABLE, None)
    command = [sys.executable, "-c", IMPORT_AFTERWARDS, str(tmp_path / "bytecode")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kept = Path(json.loads(done.stdout))
    assert kept.is_relative_to(tmp_path / "bytecode")
    assert kept.is_file()


def test_the_engine_process_takes_the_choice_although_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv(VARIABLE, "/another")
    use_environment([Choice(VARIABLE, "/caches/bytecode", "a reason"), Choice("--block-size", 32, "a reason")])
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == ("/caches/bytecode", False)
    assert os.environ[VARIABLE] == "/caches/bytecode"
    assert "--block-size" not in os.environ
