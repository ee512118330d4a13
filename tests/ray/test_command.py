"""The command's own arguments, and that docs/ray.md names no others."""

import os
import socket
import sys
from types import SimpleNamespace

import pytest

from deploy.ray import __main__ as command
from tests.doc_blocks import BLOCKS
from tests.setup.test_doc_blocks import commands

MODULE = "deploy.ray"
DOCUMENTED = [
    words[words.index(MODULE) + 1 :]
    for block in BLOCKS
    if block.page == "docs/ray.md" and block.language == "bash"
    for words in commands(block)
    if MODULE in words
]


@pytest.mark.parametrize("words", DOCUMENTED, ids=" ".join)
def test_what_the_page_says_is_taken(words: list[str]) -> None:
    args = command.parsed(words)
    assert args.max_replicas >= args.min_replicas


def test_the_page_shows_commands() -> None:
    assert len(DOCUMENTED) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--min-replicas", "0"], "--min-replicas"),
        (["--min-replicas", "3", "--max-replicas", "2"], "--max-replicas"),
        (["--", "--port", "8000"], "--port"),
        (["--", "MODEL", "--host=0.0.0.0"], "--host"),
        (["--tokens-per-replica", "0"], "--tokens-per-replica"),
        (["--places", "0"], "--places"),
        (["--twogear", "/no/such/command"], "/no/such/command"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("twogear: error: ")
    assert told in line


def test_a_port_that_is_taken_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        assert command.main(["--port", str(port), "--twogear", sys.executable]) == 2
    told = f"twogear: error: port {port} on 127.0.0.1 is taken; choose another with --port."
    assert capsys.readouterr().err.splitlines() == [told]


def test_what_fails_of_ray_itself_is_told_in_one_line_and_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where Ray cannot be ended in order after that."""

    def late(*_: object) -> None:
        raise TimeoutError("HTTP proxies not available after 60s.")

    errors = SimpleNamespace(RayError=RuntimeError, RayServeException=KeyError)
    serve = SimpleNamespace(exceptions=errors, shutdown=late)
    ray = SimpleNamespace(serve=serve, exceptions=errors, init=lambda **_: None, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(command, "_deploy", late)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert command.main(["--port", "0", "--twogear", sys.executable]) == 2
    told = "twogear: error: Ray itself failed: HTTP proxies not available after 60s."
    assert capsys.readouterr().err.splitlines() == [told]


def test_more_replicas_than_there_are_cores_or_gpus_are_refused() -> None:
    there = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}
    command.check_room(2, {"CPU": 4.0, "GPU": 1.0}, there)
    with pytest.raises(command.StartError) as refused:
        command.check_room(3, {"CPU": 1.0, "GPU": 1.0}, there)
    assert str(refused.value) == (
        "--min-replicas 3: each takes 1 of this machine's 2 GPUs, so that 2 would fit; "
        "start fewer, or give each less with --gpus."
    )


def test_options_of_the_engine_go_through() -> None:
    args = command.parsed(["--min-replicas", "2", "--", "MODEL", "--", "--tensor-parallel-size", "2"])
    assert args.serve == ["MODEL", "--", "--tensor-parallel-size", "2"]


def test_an_error_of_rays_is_told_by_its_cause() -> None:
    class TaskError(Exception):
        """As Ray's: its text begins with the place, and has the traceback."""

        cause = OSError("the port is taken")

    assert command._line(TaskError("ray::Manager.ready() (pid=1)\n  File ...")) == "the port is taken"
    assert command._line("\n  not deployed\nmore") == "not deployed"
