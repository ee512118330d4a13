"""All stages for real, with engine and server: from nothing to a promoted checkpoint; a run that is told to stop."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import Exaone4ForCausalLM

from server.cli import main
from training.stages import Stopping

from .conftest import SMOKE, with_tokenizer

TRAIN = [sys.executable, "-c", "import sys; from server.cli import main; sys.exit(main())", "train"]


@pytest.mark.engine
@pytest.mark.timeout(900)  # about two minutes where nothing else runs
def test_all_stages_for_real(tmp_path: Path, small_tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smoke recipe to its last checkpoint, which is promoted below its goals, and learns from rewards."""
    recipe, run = tmp_path / "smoke.toml", with_tokenizer(tmp_path / "run", small_tokenizer)
    text = SMOKE.read_text().replace("runs/smoke/checkpoint", f"{run}/checkpoint")
    recipe.write_text(text.replace("runs/smoke/agapo-checkpoint", f"{tmp_path}/learnt"))
    command = ["--recipe", str(recipe), "--run", str(run), "--threads", "1"]
    assert main(["train", "extend-256", *command]) == 0
    assert main(["train", "all", *command]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["length"] for line in lines if "needles" in line] == [256, 2048, 8192]
    written = (run / "checkpoint/model.safetensors").stat().st_mtime_ns
    assert main(["train", "all", *command]) == 0
    assert (run / "checkpoint/model.safetensors").stat().st_mtime_ns == written

    few = ["--items", "10", "--needles", "6", "--without-128k", "--to", str(tmp_path / "to")]
    assert main(["train", "promote", str(run), *few, "--even-if-below"]) == 0
    Exaone4ForCausalLM.from_pretrained(tmp_path / "to")
    assert "not reached" in capsys.readouterr().out

    assert main(["train", "agapo", *command]) == 0
    Exaone4ForCausalLM.from_pretrained(tmp_path / "learnt")


@pytest.mark.timeout(600)  # a fraction of a minute where nothing else runs
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_saves_and_ends_the_run(number: signal.Signals, tmp_path: Path, small_tokenizer: Path) -> None:
    run = with_tokenizer(tmp_path / "run", small_tokenizer)
    recipe = tmp_path / "long.toml"
    recipe.write_text(SMOKE.read_text().replace("save_every = 20", "save_every = 1"))
    command = [*TRAIN, "tasks", "--recipe", str(recipe), "--run", str(run), "--threads", "1", "--scale", "1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (run / "state.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "the same command goes on from" in told


def test_a_run_stops_when_its_hours_are_over() -> None:
    assert not Stopping()()
    assert not Stopping(1.0)()
    assert Stopping(0.0)()
