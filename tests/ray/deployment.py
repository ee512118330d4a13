"""The application on a Ray of its own, started as docs/ray.md says, in a network namespace that has loopback alone."""

import ctypes
import fcntl
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from tests.doc_blocks import ROOT

PYTHON = ROOT / ".venv-ray" / "bin" / "python"
START_SECONDS = 900
"""On a busy machine; alone it takes a minute."""
LONGEST_STEP = 30.0
TRIES = 3
TOO_SLOW = ("no Ray answers at this machine", "HAProxy did not start")
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


@contextmanager
def loopback_alone() -> Iterator[None]:
    """This thread, and what it starts, has a network of its own meanwhile: Ray listens on every address that there is.

    Raises OSError where this user may not do that.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open("rb") as before:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


class Deployment:
    """Runs from `with` to its end. `url` and `head`, Ray's own address, are known from the start."""

    def __init__(self, port: int, folder: Path, *arguments: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.head = ""
        self.output: list[str] = []
        self._port = port
        self._token = folder / "token"
        self._token.write_text(secrets.token_hex(32))  # Ray makes none at a path that it is told
        self._announced = threading.Event()
        self._temp = tempfile.TemporaryDirectory(prefix="tw")  # short: Ray puts sockets into it
        self.process = subprocess.Popen(
            [
                *self.command(*arguments[: self._own(arguments)]),
                "--temp-dir",
                self._temp.name,
                *arguments[self._own(arguments) :],
            ],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @staticmethod
    def _own(arguments: Sequence[str]) -> int:
        return arguments.index("--") if "--" in arguments else len(arguments)

    @property
    def environment(self) -> dict[str, str]:
        """Small, patient with a busy machine, and with nothing in the user's home."""
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "RAY_SERVE_HAPROXY_NBTHREAD": "2",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "55",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "120",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
            "RAY_gcs_rpc_server_connect_timeout_s": "120",
            "RAY_gcs_server_request_timeout_seconds": "240",
        }

    def command(self, *arguments: str) -> list[str]:
        """The documented command, on this deployment's port."""
        return [str(PYTHON), "-m", "deploy.ray", "--port", str(self._port), "--cpus", "0.1", *arguments]

    def update(self, *arguments: str, code: int = 0) -> str:
        """Runs the command again, for the cluster that runs; what it says on stderr. `code`: how it has to end."""
        done = subprocess.run(
            self.command("--address", self.head, *arguments),
            env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=START_SECONDS,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    def was_too_slow(self) -> bool:
        """Whether Ray's own processes took longer to start than Ray lets them."""
        return any(told in line for line in self.output for told in TOO_SLOW)

    def await_start(self) -> bool:
        """Whether it has come up, once that is known."""
        with suppress(TimeoutError):
            until(self._announced.is_set, "it has come up, or has ended")
        return bool(self.head)

    def __enter__(self) -> "Deployment":
        if not self.await_start():
            self.stop()
            raise RuntimeError("it did not start:\n" + "\n".join(self.output))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Ends it as Ctrl-C would; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(300)
        self._reader.join()
        self._temp.cleanup()
        return code

    def children(self) -> list[psutil.Process]:
        """Every `twogear serve` that has a URL."""
        return [one for one in self._serves() if _listens(one)]

    def starts_a_server(self) -> bool:
        """Whether there is a `twogear serve`, be it ready or not."""
        return bool(self._serves())

    def serves_alone(self, number: int) -> bool:
        """Whether there are so many children, and all take requests."""
        serves = self._serves()
        return len(serves) == number and all(_listens(one) and _is_ready(url_of(one)) for one in serves)

    def actors(self, name: str) -> list[psutil.Process]:
        """Ray's processes whose title begins so."""
        return [one for one in self._processes() if _command(one)[:1] and _command(one)[0].startswith(f"ray::{name}")]

    def haproxies(self) -> list[psutil.Process]:
        """All that run, also those that have lost their parent."""
        return [one for one in self._processes() if any(word.endswith("/haproxy.cfg") for word in _command(one))]

    def running(self) -> float:
        """How many requests all children run, or have waiting."""
        texts = [httpx.get(url_of(child) + "/metrics").text for child in self.children()]
        return sum(
            float(n)
            for text in texts
            for n in re.findall(r"^twogear_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)
        )

    def _serves(self) -> list[psutil.Process]:
        return [one for one in self._processes() if {"serve", "--drain-seconds"} <= set(_command(one))]

    def _processes(self) -> list[psutil.Process]:
        """All in this deployment's network."""
        own = _network(self.process.pid)
        return [one for one in psutil.process_iter() if _network(one.pid) == own]

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.output.append(line.rstrip("\n"))
                if found := re.match(r"Ready at http://\S+ \(Ray's head is (\S+)\)", line):
                    self.head = found[1]
                    self._announced.set()
        self._announced.set()


def started(port: int, folder: Path, *arguments: str) -> Deployment:
    """A deployment that has come up. Ray gives its own processes 30 s, which pass on a busy machine: it is tried again.

    Raises RuntimeError.
    """
    for _ in range(TRIES - 1):
        deployment = Deployment(port, folder, *arguments)
        if deployment.await_start():
            return deployment
        deployment.stop()
        if not deployment.was_too_slow():
            break
    return Deployment(port, folder, *arguments)


def url_of(child: psutil.Process) -> str:
    """The address of a `twogear serve` itself."""
    (listening,) = [one for one in child.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    return f"http://127.0.0.1:{listening.laddr.port}"


def _network(pid: int) -> str:
    """Its namespace; empty once it has ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _command(process: psutil.Process) -> list[str]:
    """Empty once it has ended."""
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words


def _listens(child: psutil.Process) -> bool:
    try:
        return any(one.status == psutil.CONN_LISTEN for one in child.net_connections("tcp"))
    except psutil.Error:
        return False


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.HTTPError:
        return False


def until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Waits for it; raises TimeoutError. Minutes in which the machine did nothing here count as one step."""
    left, before = seconds, time.monotonic()
    while not condition():
        now = time.monotonic()
        left, before = left - min(now - before, LONGEST_STEP), now
        if left < 0:
            raise TimeoutError(what)
        time.sleep(0.2)


if sys.platform != "linux":
    raise ImportError("network namespaces are Linux's")
