"""One engine whose workers are Ray's: `--distributed-executor-backend ray`, with two on CPUs that Ray takes for GPUs.

vLLM has its CPU platform refuse Ray, so a plug-in puts another in its place. Ray and the server have to be in one
environment: a third one here, which finds the packages of both.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.doc_blocks import ROOT
from tests.ray.deployment import PYTHON, START_SECONDS, TRIES, loopback_alone
from tests.real_server import RealServer

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON.exists(), reason="Ray is not installed: make test-ray"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Ray listens everywhere, and a network of its own needs root"),
    pytest.mark.timeout(3600),
]
HEAD = "127.0.0.1:6399"
ASKED: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "What is 17 + 25?"}], **fields}
    for fields in ({}, {"reasoning_mode": "reasoning", "temperature": 0, "max_tokens": 150})
]
SERVE = "import sys; from server.cli import main; sys.exit(main())"
SPREAD = ["--", "--tensor-parallel-size", "2", "--distributed-executor-backend", "ray"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with the server's packages, then Ray's, and the plug-in."""
    venv = tmp_path_factory.mktemp("both")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    others = [next((ROOT / one).glob("lib/python*/site-packages")) for one in (".venv", ".venv-ray")]
    (site / "both.pth").write_text("".join(f"import site; site.addsitedir({str(one)!r})\n" for one in others))
    about = site / "cpu_with_ray-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: cpu-with-ray\nVersion: 1\n")
    entry = "[vllm.platform_plugins]\ncpu_with_ray = tests.ray.cpu_with_ray_plugin:platform\n"
    (about / "entry_points.txt").write_text(entry)
    return venv / "bin" / "python"


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with loopback_alone(), pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled",
            "RAY_ADDRESS": HEAD, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
            "RAY_worker_niceness": "0",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def head(environment: None, python: Path) -> Iterator[None]:
    """A cluster of this machine."""
    with tempfile.TemporaryDirectory(prefix="tw") as folder:  # short: Ray puts sockets into it
        options = ["--head", "--port", HEAD.partition(":")[2], "--node-ip-address", "127.0.0.1", "--num-gpus", "2"]
        options += ["--num-cpus", "2", "--temp-dir", folder, "--object-store-memory", str(80 << 20), "--block"]
        options += ["--include-dashboard", "false"]
        start = "from ray.scripts.scripts import main; main()"
        own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        command = [str(python), "-c", start, "start", *options]
        with ExitStack() as stack:
            for _ in range(TRIES):  # Ray gives its own processes 30 s
                process = stack.enter_context(subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True))
                assert process.stdout is not None
                if any("Ray runtime started" in line for line in process.stdout):
                    break
            stack.callback(process.terminate)
            yield


def test_a_head_that_is_not_there_is_refused(environment: None, python: Path) -> None:
    done = subprocess.run(
        [python, "-c", SERVE, "serve", "--port", "0", *SPREAD], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("twogear: error: ")]
    assert f"no Ray answers at {HEAD}" in line


def test_two_workers_of_ray_answer_as_one_process(head: None, python: Path) -> None:
    with RealServer() as one:
        expected = [said(one.url, fields) for fields in ASKED]
    with RealServer(*SPREAD, command=[python, "-c", SERVE], patience=START_SECONDS) as two:
        assert "TwogearExaone4ForCausalLM" in "".join(two.output)
        assert [said(two.url, fields) for fields in ASKED] == expected


def said(url: str, fields: dict[str, Any]) -> Any:
    """What is answered."""
    response = httpx.post(f"{url}/v1/chat/completions", json=fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"]
