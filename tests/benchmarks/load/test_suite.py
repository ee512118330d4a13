"""The suite from end to end, with scripted processes instead of servers: no vLLM, no model."""

import argparse
import json
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import beside, suite
from benchmarks.load.checkpoints import make_large
from benchmarks.load.records import read
from benchmarks.load.running import RunningServer, ServerFailed, free_port
from benchmarks.load.tables import failures, of_load
from benchmarks.load.workload import Load, Prompts
from benchmarks.peers.servers import SERVERS, Start, Target
from chat_templates.format import ChatFormat
from server.cli import main
from server.cli_errors import UsageError
from server.settings import EMBEDDED_MODEL
from tests.benchmarks.load.results import MACHINE

LOADS = (
    Load(streams=1, mode="standard", prompt_tokens=30, output_tokens=12, requests=2, limit=30, warm_up=2),
    Load(streams=4, mode="half", prompt_tokens=30, output_tokens=40, requests=8, limit=30, warm_up=0),
)


def scripted(target: Target) -> Start:
    return Start(
        (sys.executable, "-m", "tests.benchmarks.load.scripted", str(target.port)), {"ANY": str(target.caches)}
    )


def broken(target: Target) -> Start:
    return Start((sys.executable, "-c", "import sys; sys.exit('no such weights')"))


def unbuilt(target: Target) -> Start:
    raise UsageError("needs cmake")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(suite, "SUITES", {"quick": LOADS})
    monkeypatch.setattr(suite, "SERVERS", {"one": scripted, "broken": broken, "unbuilt": unbuilt})
    monkeypatch.setattr(suite, "measure_apart", lambda: MACHINE)
    path = tmp_path / "bench.json"
    arguments = argparse.Namespace(what="quick", servers="one,broken,unbuilt", rounds=2, minutes=0.0, json=path)
    assert suite.run(arguments) == 0
    return path


def test_a_suite_measures_what_answers_and_tells_what_does_not(measured: Path) -> None:
    result = read(measured)
    assert [(one.server, one.round) for one in result.rounds] == [("one", 1), ("broken", 1), ("unbuilt", 1)]
    one, *others = result.rounds
    assert all("failed" not in told or not told.startswith("one") for told in failures(result))
    assert "no such weights" in (others[0].failed or "")
    assert others[1].failed == "needs cmake"
    assert one.ready is not None
    assert one.first_token is not None
    assert one.first_token >= one.ready
    for load in LOADS:
        samples = one.loads[load.name].samples
        assert [sample.error for sample in samples] == [None] * load.requests
        assert {sample.completion_tokens for sample in samples} == {load.output_tokens}
        assert one.loads[load.name].memory > 0
    mixed = of_load(result, "one", LOADS[1].name)
    assert mixed is not None
    assert mixed.first_answer is not None
    assert sum(sample.thinks for sample in one.loads[LOADS[1].name].samples) == 4
    assert result.starts["one"]["environment"]["ANY"].endswith("/one")


def test_the_bare_engine_gets_the_loads_of_short_prompts_as_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[dict[str, Any]] = []

    def run(_module: str, job: dict[str, Any], _limit: float) -> list[dict[str, int]]:
        jobs.append(job)
        return [{"tokens": 1}] * 2

    monkeypatch.setattr(beside, "_run", run)
    long = replace(LOADS[0], prompt_tokens=2000)
    bare = beside.Beside(EMBEDDED_MODEL, Prompts(EMBEDDED_MODEL), [*LOADS, long])
    bare.bare_engine(1)
    assert bare.results == {"bare-engine": [{load.name: {"tokens": 1} for load in LOADS}]}
    first, second = jobs[0]["loads"]
    assert [one["sampling"]["max_tokens"] for one in first["warm_up"] + first["requests"]] == [2, 12]
    assert second["warm_up"] == []
    assert len(second["requests"]) == LOADS[1].streams


def interrupted(target: Target) -> Start:
    raise KeyboardInterrupt


def test_what_was_measured_is_kept_when_the_rest_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(suite, "SUITES", {"quick": LOADS[:1]})
    monkeypatch.setattr(suite, "SERVERS", {"unbuilt": unbuilt, "interrupted": interrupted})
    monkeypatch.setattr(suite, "measure_apart", lambda: MACHINE)
    path = tmp_path / "bench.json"
    assert main(["bench", "quick", "--servers", "unbuilt,interrupted", "--json", str(path)]) == 130
    assert [one.server for one in read(path).rounds] == ["unbuilt"]


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    port = free_port()
    start = Start((sys.executable, "-m", "tests.benchmarks.load.scripted", str(port)))
    with RunningServer(start, port, tmp_path / "log") as server:
        server.wait_until_ready(60)
        pids = server.tree.pids()
        assert len(pids) == 2
    assert not [pid for pid in pids if is_running(pid)]


MEASURING = """
import sys, time
from pathlib import Path
from benchmarks.load.running import RunningServer, free_port
from benchmarks.peers.servers import Start
port = free_port()
start = Start((sys.executable, "-m", "tests.benchmarks.load.scripted", str(port)))
with RunningServer(start, port, Path(sys.argv[1])) as server:
    server.wait_until_ready(60)
    print(*server.tree.pids(), flush=True)
    time.sleep(600)
"""


def test_a_measurement_that_is_terminated_takes_its_server_with_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", MEASURING, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as measuring:
        assert measuring.stdout is not None
        pids = [int(pid) for pid in measuring.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        measuring.terminate()
        assert measuring.wait(60) == 128 + signal.SIGTERM
    assert not any(map(is_running, pids))


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    start = Start((sys.executable, "-c", "import time; print('still loading', flush=True); time.sleep(600)"))
    with RunningServer(start, free_port(), tmp_path / "log") as server:
        with pytest.raises(ServerFailed, match="not ready after 2 s"):
            server.wait_until_ready(2)
        pid = server.tree.root
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["bench", "quick", "--servers", "twogear,ollama"], "ollama"),
        (["bench", "quick", "--rounds", "0"], "--rounds"),
        (["bench", "load", "--streams", "0"], "at least 1"),
        (["bench", "load", "--url", "http://127.0.0.1:9"], "no server answers"),
        (["bench", "report", "--results", "none.json"], "no result file"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_one_load_on_a_running_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    start = Start((sys.executable, "-m", "tests.benchmarks.load.scripted", str(port)))
    with RunningServer(start, port, tmp_path / "log") as server:
        server.wait_until_ready(60)
        assert main(["bench", "load", "--url", server.url, "--streams", "2", "--output-tokens", "20"]) == 0
        told = capsys.readouterr().out
        assert '"failed": 0' in told
        several = ["--streams", "5", "--requests", "7", "--clients", "2", "--output-tokens", "20"]
        assert main(["bench", "load", "--url", server.url, *several]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (told["figures"]["failed"], len(told["client_cores"])) == (0, 2)
        assert main(["bench", "load", "--url", server.url, "--streams", "2", "--clients", "3"]) == 2
        assert "--clients" in capsys.readouterr().err
        assert main(["bench", "load", "--url", server.url, "--mode", "reasoning", "--output-tokens", "20"]) == 0
        assert '"failed": 0' in capsys.readouterr().out
        assert main(["bench", "load", "--url", server.url, "--mode", "deep"]) == 2
        assert "--mode deep: the server has standard, reasoning; or say half" in capsys.readouterr().err
        assert main(["bench", "load", "--url", server.url, "--model", "/none"]) == 2
        assert "tokenizer.json" in capsys.readouterr().err
        assert main(["bench", "load", "--url", server.url, "--prompt-tokens", "50000"]) == 1
        assert "context" in capsys.readouterr().out


def test_all_servers_get_the_same_checkpoint_and_ours_is_kept_out_of_vllm(tmp_path: Path) -> None:
    target = Target("embedded", tmp_path / "model", 1234, tmp_path / "caches")
    for name in ("twogear", "vllm", "vllm-tuned"):
        start = SERVERS[name](target)
        assert str(target.checkpoint) in start.command
        assert "1234" in start.command
        assert start.environment["VLLM_CACHE_ROOT"].startswith(str(target.caches))
        assert ("VLLM_PLUGINS" in start.environment) == (name != "twogear")


def tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    with (folder / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}


def test_the_large_checkpoint_has_the_tensors_that_transformers_writes(tmp_path: Path) -> None:
    config = json.loads((EMBEDDED_MODEL / "config.json").read_text())
    make_large(tmp_path, {**config, "tie_word_embeddings": True})
    trained = tensors(EMBEDDED_MODEL)
    trained.pop("lm_head.weight", None)
    assert tensors(tmp_path) == trained
    fmt = ChatFormat.from_folder(tmp_path)
    assert fmt.decode(fmt.encode_text("the large one")) == "the large one"


def test_the_reason_of_a_failure_is_the_first_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [
        "WARNING may cause OSError: no files",
        "(Engine) ERROR 1 ValueError: no memory",
        "RuntimeError: above",
        "bye",
    ]
    log.write_text("\n".join(lines))
    assert RunningServer(Start(()), 1, log).last_words() == "ValueError: no memory … bye"
