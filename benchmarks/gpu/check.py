"""Twogear on a GPU, stage by stage: `python -m benchmarks.gpu.check [--stages kernels,parity,…]`.

Run in the repository's root, with vLLM and this repository importable (`pack.py` makes a folder for a machine that
lacks them). Each stage is a process group of its own with a limit, and writes STAGE.log into the folder that OUT names.
What it found is printed at the end and written to check.json. A stage that fails does not keep the others from running;
the exit status is 1 then. On a machine without a GPU the stages that need one are left out, which is a failure too.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.results import PREFIX, results_folder
from engine.defaults import Machine

NO_GPU = "not run: there is no GPU here"


class Stage(NamedTuple):
    """`python -m` and its arguments, one command after the other, and how long they may take together, in seconds.

    What does not need a GPU may be tried without one: whether it runs through, not what it comes to.
    """

    seconds: int
    commands: tuple[tuple[str, ...], ...]
    needs_gpu: bool = False


STAGES = {
    "kernels": Stage(45, (("benchmarks.gpu.kernels",),), needs_gpu=True),
    "parity": Stage(
        160,
        (
            ("benchmarks.gpu.parity", "embedded"),
            ("benchmarks.gpu.parity", "embedded", "--", "--enforce-eager"),
            ("benchmarks.gpu.parity", "embedded", "--", "--enforce-eager", "--dtype", "float32"),
        ),
    ),
    "server": Stage(110, (("benchmarks.gpu.servers", "answers"),)),
    "limits": Stage(90, (("benchmarks.gpu.servers", "limits"),)),
    "types": Stage(
        130,
        (
            ("benchmarks.gpu.parity", "embedded", "--", "--enforce-eager", "--kv-cache-dtype", "fp8"),
            ("benchmarks.gpu.parity", "embedded", "--", "--enforce-eager", "--quantization", "fp8"),
        ),
        needs_gpu=True,
    ),
    "host": Stage(120, (("benchmarks.host.steps", "--rounds", "3", "--json", "host.json"),)),
    "large": Stage(110, (("benchmarks.gpu.parity", "large", "--", "--gpu-memory-utilization=0.6"),), needs_gpu=True),
    "speed": Stage(420, (("benchmarks.gpu.servers", "speed"),), needs_gpu=True),
}
"""In the order in which they tell most for the time."""


def run(name: str, stage: Stage, folder: Path) -> dict[str, Any]:
    """Exit status (None: over its limit), seconds and findings of a stage."""
    if stage.needs_gpu and Machine.detect().platform != "gpu":
        return {"stage": name, "exit": 1, "seconds": 0.0, "found": [NO_GPU], "tail": []}
    began = time.monotonic()
    code: int | None = 0
    log = folder / f"{name}.log"
    with log.open("w") as opened:
        for command in stage.commands:
            left = stage.seconds - (time.monotonic() - began)
            ended = _run(["-m", *_placed(command, folder)], opened, left)
            code = ended if ended != 0 else code
            if ended is None:
                break
    lines = log.read_text(errors="replace").splitlines()
    found = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    tail = lines[-25:] if code != 0 else []
    return {"stage": name, "exit": code, "seconds": time.monotonic() - began, "found": found, "tail": tail}


def _placed(command: Sequence[str], folder: Path) -> list[str]:
    """Files of results lie in the folder."""
    return [str(folder / word) if word.endswith(".json") else word for word in command]


def _run(arguments: Sequence[str], output: Any, seconds: float) -> int | None:
    """The exit status; None where it took longer and was killed, with all that it had started."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def main() -> int:
    """Runs the stages that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check", description=__doc__)
    parser.add_argument("--stages", default=",".join(STAGES), help=f"of {', '.join(STAGES)}")
    names = parser.parse_args().stages.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        parser.error(f"--stages: there is no {', '.join(unknown)}")
    folder = results_folder()
    done = []
    for name in names:
        done.append(run(name, STAGES[name], folder))
        print(f"== {name}: exit {done[-1]['exit']}, {done[-1]['seconds']:.0f} s", flush=True)
        print("\n".join([*done[-1]["found"], *done[-1]["tail"]]), flush=True)
    result = {
        "command": f"python -m benchmarks.gpu.check --stages {','.join(names)}",
        "python": platform.python_version(),
    }
    (folder / "check.json").write_text(json.dumps({**result, "stages": done}, indent=1), encoding="utf-8")
    return int(any(one["exit"] != 0 for one in done))


if __name__ == "__main__":
    sys.exit(main())
