"""The command line: mistakes are one line on stderr and exit code 2."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli import MODULES, main
from server.settings import EMBEDDED_MODEL, Settings

TINY = str(EMBEDDED_MODEL)


def error_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command prints."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line.removeprefix("twogear: error: ")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["serv"], "did you mean serve?"),
        (["serve", "/no/such/folder"], "/no/such/folder"),
        (["serve", "--prot", "1"], "did you mean --port?"),
        (["serve", "--port", "99999"], "99999"),
        (["serve", TINY, "extra"], "extra"),
        (["serve", TINY, "--profile", "/none.toml"], "/none.toml"),
        (["serve", TINY, "--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["chat", "--url", "nonsense"], "nonsense"),
        (["chat", "--", "--dtype"], "takes nothing after --"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in error_of(argv, capsys)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = error_of(["serve", TINY, "--port", str(port)], capsys)
        assert f"port {port} on 127.0.0.1 is taken" in message
        taken.close()
        assert "no server answers" in error_of(["chat", "--url", f"http://127.0.0.1:{port}"], capsys)


def test_folders_that_are_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "config.json" in error_of(["serve", str(tmp_path)], capsys)
    (tmp_path / "config.json").write_text('{"architectures": ["X"], "model_type": "x"}')
    assert "weights" in error_of(["serve", str(tmp_path)], capsys)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "tokenizer.json" in error_of(["serve", str(tmp_path)], capsys)
    (tmp_path / "tokenizer.json").write_text("{")
    assert "tokenizer" in error_of(["serve", str(tmp_path)], capsys)


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in MODULES:
        assert name in overview
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0
        text = capsys.readouterr().out
        assert "options:" in text
        assert "default: None" not in text


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-c", "import sys; from server.cli import main; sys.exit(main(['--help']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_the_help_tells_the_defaults_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    assert str(Settings().port) in text
    assert Settings().host in text
    assert "ENGINE OPTIONS" in text
