"""The command line as a newcomer meets it: hints that say what to do, and a chat that survives."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from engine.defaults import Choice
from evals import budgets, modes
from evals.asking import show_result
from server.cli import main
from server.commands.chat.line_editor import PipeReader
from server.engine_client import EngineStatus
from server.settings import EMBEDDED_MODEL
from server.start_display import StartDisplay
from server.urls import server_url
from tests.server.test_cli import error_of

TINY = str(EMBEDDED_MODEL)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_an_address_with_or_without_v1(path: str) -> None:
    assert server_url(f"http://127.0.0.1:8000{path}") == "http://127.0.0.1:8000"
    assert server_url(f"https://host/twogear{path}") == "https://host/twogear"


def test_memory_without_a_unit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "160GiB" in error_of(["plan", TINY, "--memory", "160"], capsys)


def test_an_engine_option_before_the_dashes_is_told_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(["serve", "--max-model-len", "4096"], capsys)
    assert "twogear serve -- --max-model-len" in message


def test_a_gguf_that_is_none_or_not_named_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model-q4.gguf"
    file.write_bytes(b"GGUF")
    assert "is no GGUF file, or cut off" in error_of(["serve", str(file)], capsys)
    assert "name the one that is meant" in error_of(["serve", str(tmp_path)], capsys)
    assert "no GGUF file" in error_of(["plan", str(file), "--memory", "1GiB"], capsys)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"# A readme\nNothing else.", "no chat template"), (b"\xff\xfe\x00", "UTF-8"), (b"{% if %}", "jinja")],
)
def test_a_template_that_is_none_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, told: str
) -> None:
    file = tmp_path / "template.jinja"
    file.write_bytes(content)
    assert told in error_of(["serve", TINY, "--chat-template", str(file)], capsys)


def test_the_engines_defaults_are_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--show-defaults"]) == 0
    out = capsys.readouterr().out
    assert all(": " in line for line in out.splitlines())
    assert out.count("\n") > 3


def test_a_start_prints_at_most_five_lines() -> None:
    told = io.StringIO()
    display = StartDisplay(Console(file=told, width=200), ())
    for number, stage in enumerate(("a", "b", "c", "d", "e", "f", "g", "h", "i")):
        display.show(EngineStatus("loading", stage, number / 10))
    display.show(EngineStatus("ready", "", 1.0))
    display.ready("http://127.0.0.1:8000", 8.0, "twogear-tiny", "reasoning")
    assert 2 <= told.getvalue().count("\n") <= 5
    assert "Ready after 8 s at http://127.0.0.1:8000 " in told.getvalue()


def test_the_choices_are_shown_to_those_who_ask() -> None:
    told = io.StringIO()
    StartDisplay(Console(file=told, width=200), [Choice("--x", 1, "because")]).close()
    assert "--x 1: because" in told.getvalue()


def test_tables_fit_a_narrow_terminal_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    names = [f"a_family_of_questions_{n}" for n in range(12)]
    spent = {str(budget): 0.123456 for budget in (0, 8, 16, 32, 64, 128, 256, 512, 1024)}
    budget_result = {
        "what": "eval budgets", "standard": 0.4, "summary": spent, "stopped": spent,
        "families": {name: {"forced": spent} for name in names},
    }  # fmt: skip
    both = {"standard": 0.5, "reasoning": 1.0}
    mode_result = {
        "summary": both, "families": dict.fromkeys(names, both), "confusion": {mode: {"any": 0.1} for mode in both},
        "tokens": {mode: {"all": 1234.5, "trials": 123.4} for mode in both},
    }  # fmt: skip
    show_result(budget_result, budgets._table(budget_result), None)
    show_result(mode_result, modes._table(mode_result), None)
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert all(name in out for name in names)
    assert not list(tmp_path.iterdir())
    show_result(mode_result, modes._table(mode_result), tmp_path / "a" / "result.json")
    assert (tmp_path / "a" / "result.json").is_file()


def test_a_lost_server_is_no_end_of_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import httpx

    models = {"data": [{"id": "m", "reasoning_mode": "standard"}, {"id": "m:standard", "reasoning_mode": "standard"}]}
    event = b'data: {"choices": [{"delta": {"content": "It is 4."}}]}\n\ndata: [DONE]\n\n'
    answers = iter([None, event])

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json=models)
        content = next(answers)
        if content is None:
            raise httpx.ReadError("gone", request=request)
        return httpx.Response(200, content=content)

    real = httpx.AsyncClient
    monkeypatch.setattr("httpx.AsyncClient", lambda **options: real(transport=httpx.MockTransport(answer), **options))
    monkeypatch.setattr("sys.stdin", io.StringIO("2 + 2?\n2 + 2?\n/quit\n"))
    assert main(["chat", "--url", "http://server/v1"]) == 0
    out = capsys.readouterr().out
    assert "The server was lost" in out
    assert "It is 4." in out


async def test_lines_come_one_by_one_where_nobody_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    reader = PipeReader()
    assert [await reader.read(""), await reader.read("")] == ["a", "b"]
