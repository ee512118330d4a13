"""`twogear calibrate`: the threshold that it finds, what it says of held-out questions, and its mistakes."""

import json
from pathlib import Path

import pytest

from evals.auto import Kinds
from evals.calibrate import Asked, Wish, fitted, profile_part, read_questions
from evals.thresholds import Drawn, Pair
from server.cli import main
from server.cli_errors import UsageError
from server.modes.profile import PROFILE_FOLDER, AutoMode, load_profile

SURE = [Pair("sums", 1, 1, 2, 100, [Drawn(-0.1)])] * 2
UNSURE = [Pair("sums", 0, 1, 2, 100, [Drawn(-3.0)])] * 2
PAIRS = [*SURE, *UNSURE] * 5
KINDS = Kinds("standard", "reasoning")


def test_the_threshold_between_right_and_wrong() -> None:
    fit = fitted(PAIRS, Wish(1.0, None), "sum", 32)
    assert fit.fitted.threshold == pytest.approx(-0.1)
    assert (fit.held_out.accuracy, fit.held_out.tokens) == (1.0, (2 + 102) / 2)
    assert (fit.direct.accuracy, fit.thinking.accuracy) == (0.5, 1.0)
    assert fitted(PAIRS, Wish(None, 0.1), "sum", 32).fitted.threshold == pytest.approx(-3.0)


def test_where_thinking_always_is_best() -> None:
    with pytest.raises(UsageError, match="best to think always"):
        fitted(UNSURE * 5, Wish(1.0, None), "sum", 32)


def test_what_is_written_is_a_part_of_a_profile(tmp_path: Path) -> None:
    part = profile_part(Asked("my-model", KINDS, PAIRS), fitted(PAIRS, Wish(1.0, None), "sum", 8), "sum", 8)
    path = tmp_path / "profile.toml"
    path.write_text(f"{(PROFILE_FOLDER / 'twogear_tiny.toml').read_text()}\n{part}")
    assert load_profile(path).modes["auto"] == AutoMode(
        direct="standard", thinking="reasoning", draft_tokens=8, threshold=-0.1, calibrated_for="my-model"
    )


def test_questions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"{n}?", "answer": "Rome"}) for n in range(20)))
    questions = read_questions(path)
    assert [one.text for one in questions[:2]] == ["0?", "1?"]
    assert [questions[0].score(said) for said in (" rome\n", "Milan")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--items", "3"], "--items must be at least 20"),
        (["--draft-tokens", "0"], "--draft-tokens must be at least 1"),
        (["--accuracy-loss", "1", "--tokens", "0.5"], "not allowed with argument"),
        (["--questions", "none.jsonl"], "--questions none.jsonl"),
        (["--families", "nothing"], "'nothing' is none of"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
