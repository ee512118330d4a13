"""`twogear calibrate`: the threshold that it finds, what it says of held-out questions, and its mistakes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals.auto import Kinds, Question
from evals.calibrate import Asked, Wish, _ask, _same, curve_of, fitted, profile_part, read_questions
from evals.fitting import FITTED
from evals.plots import draw
from evals.thresholds import Drawn, Pair, halves
from server.cli import main
from server.cli_errors import UsageError
from server.modes.confidence import ENTROPY_TOP, Weights
from server.modes.profile import PROFILE_FOLDER, AutoMode, load_profile
from tests.evals.test_eval import reading, server_of, writes
from tests.real_server import RealServer

SURE = [Pair("sums", 1, 1, 2, 100, [Drawn(-0.1)])] * 2
UNSURE = [Pair("sums", 0, 1, 2, 100, [Drawn(-3.0)])] * 2
PAIRS = [*SURE, *UNSURE] * 5
KINDS = Kinds("standard", "reasoning")


def test_the_threshold_between_right_and_wrong() -> None:
    fit = fitted(PAIRS, Wish(1.0, None), "sum", 32)
    assert fit.fitted.threshold == pytest.approx(-0.1)
    assert (fit.held_out.accuracy, fit.held_out.tokens) == (1.0, (2 + 101) / 2)
    assert (fit.direct.accuracy, fit.thinking.accuracy) == (0.5, 1.0)
    assert fitted(PAIRS, Wish(None, 0.1), "sum", 32).fitted.threshold == pytest.approx(-3.0)


async def test_what_a_server_is_asked() -> None:
    def script(prompt_ids: list[int]) -> Iterator[int]:
        _, said = reading(prompt_ids)
        yield from writes("hm</think>\n\n12" if "</think>" not in said else "12")

    async with server_of(script) as (server, _):
        asked = await _ask(server, [Question("own", "6+6?", _same("12"))], None)
    assert (asked.model, asked.kinds) == ("twogear-tiny", KINDS)
    (pair,) = asked.pairs
    assert (pair.direct_score, pair.thinking_score) == (1.0, 1.0)
    assert pair.thinking_tokens > pair.direct_tokens == len(pair.entries) + 1  # the end of the turn has none
    assert all(len(entry.top) == ENTROPY_TOP for entry in pair.entries)


def test_each_family_is_in_both_halves() -> None:
    """Questions come family by family in turn, as reasoning-gym's do here."""
    pairs = [Pair(family, 1, 1, 2, 100, []) for _ in range(4) for family in ("sums", "words")]
    for half in halves(pairs):
        assert [pairs[place].family for place in half] == ["sums", "words"] * 2


def test_where_thinking_always_is_best() -> None:
    with pytest.raises(UsageError, match="best to think always"):
        fitted(UNSURE * 5, Wish(1.0, None), "sum", 32)


def test_what_is_written_is_a_part_of_a_profile(tmp_path: Path) -> None:
    part = profile_part(Asked("my-model", KINDS, PAIRS), fitted(PAIRS, Wish(1.0, None), "sum", 8), 8)
    path = tmp_path / "profile.toml"
    path.write_text(f"{(PROFILE_FOLDER / 'twogear_tiny.toml').read_text()}\n{part}")
    assert load_profile(path).modes["auto"] == AutoMode(
        direct="standard", thinking="reasoning", draft_tokens=8, threshold=-0.1, calibrated_for="my-model"
    )


def test_a_fitted_signal_is_written_as_its_weights(tmp_path: Path) -> None:
    fit = fitted(PAIRS, Wish(1.0, None), FITTED, 8)
    assert isinstance(fit.signal, Weights)
    assert fit.held_out.accuracy == 1.0
    path = tmp_path / "profile.toml"
    part = profile_part(Asked("my-model", KINDS, PAIRS), fit, 8)
    path.write_text(f"{(PROFILE_FOLDER / 'twogear_tiny.toml').read_text()}\n{part}")
    auto = load_profile(path).modes["auto"]
    assert isinstance(auto, AutoMode)
    assert auto.signal == fit.signal


def test_where_no_signal_can_be_fitted() -> None:
    with pytest.raises(UsageError, match="all wrong"):
        fitted(UNSURE * 5, Wish(1.0, None), FITTED, 32)


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    curve = json.loads(json.dumps(curve_of(KINDS, fitted(PAIRS, Wish(1.0, None), "sum", 32)), allow_nan=False))
    assert curve["threshold"] == pytest.approx(-0.1)
    assert curve["held_out"]["auto"] == {"threshold": pytest.approx(-0.1), "accuracy": 1.0, "tokens": 51.5}
    draw(curve, tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text()
    assert "all thresholds, on all questions" in drawn
    assert "-0.1, held out" in drawn


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


@pytest.mark.engine
def test_a_running_server_is_calibrated(real_server: RealServer, tmp_path: Path) -> None:
    part, curve = tmp_path / "auto.toml", tmp_path / "curve.json"
    asked = ["--url", real_server.url, "--items", "20", "--families", "spell_backward"]
    asked += ["--signal", "sum", "--accuracy-loss", "50"]
    assert main(["calibrate", *asked, "--draft-tokens", "8", "--output", str(part), "--json", str(curve)]) == 0
    path = tmp_path / "profile.toml"
    path.write_text(f"{(PROFILE_FOLDER / 'twogear_tiny.toml').read_text()}\n{part.read_text()}")
    auto = load_profile(path).modes["auto"]
    assert isinstance(auto, AutoMode)
    assert (auto.direct, auto.thinking, auto.calibrated_for) == ("standard", "reasoning", "twogear-tiny")
    assert auto.threshold == pytest.approx(json.loads(curve.read_text())["threshold"], abs=1e-6)
