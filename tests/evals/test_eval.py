"""`twogear eval budgets` and `needles`: what they ask and how they count, of a server with a scripted engine."""

import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from rich.table import Table

from chat_templates.format import ChatFormat
from evals import auto as eval_auto
from evals import budgets as eval_budgets
from evals import modes as eval_modes
from evals import needles as eval_needles
from evals.asking import Server, sampled, show_result
from evals.plots import draw as draw_plot
from server.app import create_app
from server.cli import main
from server.cli_errors import UsageError
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tasks.families import FAMILIES, held_out_items, score
from tasks.needles import NAMES
from tests.fake_engine import FakeEngine, Script
from tests.real_server import RealServer

FMT = ChatFormat.from_folder(EMBEDDED_MODEL)
NEEDLE = re.compile(r"\b(?:code )?(\d{4,6})\b")


@asynccontextmanager
async def server_of(script: Script, context: int = 4096) -> AsyncIterator[tuple[Server, FakeEngine]]:
    engine = FakeEngine(script, (FMT.end_of_turn_id,), max_context=context)
    app = create_app(engine, Settings(), load_profile(PROFILE_FOLDER / "twogear_tiny.toml"), FMT)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as client:
        yield Server(client, at_once=4), engine


def reading(prompt_ids: list[int]) -> tuple[str, str]:
    """The user's last message and what the assistant has said so far."""
    text = FMT.decode(prompt_ids, show_control=True)
    _, _, last = text.rpartition("[|user|]\n")
    question, _, said = last.partition("[|endofturn|]\n[|assistant|]\n")
    return question, said


def writes(text: str) -> Iterator[int]:
    thought, _, answer = text.rpartition("</think>")
    if thought:
        yield from [*FMT.encode_text(thought), FMT.think_end_id]
    yield from [*FMT.encode_text(answer), FMT.end_of_turn_id]


async def test_accuracy_rises_with_the_budget_and_stopping_gives_nothing_before_the_end() -> None:
    items = list(held_out_items(("chain_sum",), 6, 0))
    by_question = {item.question.strip(): item for item in items}

    def script(prompt_ids: list[int]) -> Iterator[int]:
        """Right in standard mode for the first item alone; after thinking once half of the trace is written."""
        question, said = reading(prompt_ids)
        item = by_question[question]
        if said == "<think>\n":
            yield from writes(f"{item.trace}\n</think>\n\n{item.answer}")
            return
        thought = said.removeprefix("<think>\n").partition("\n\nTime")[0].partition("</think>")[0]
        knows = item is items[0] or len(thought) >= len(item.trace) / 2
        yield from writes(item.answer if knows else "none")

    async with server_of(script) as (server, _):
        _, standard, outcomes = await eval_budgets.measure(server, items, seed=5)
    assert standard == [1.0, 0, 0, 0, 0, 0]
    curve = eval_budgets._curve(outcomes, "score")
    stopped = eval_budgets._curve(outcomes, "stopped_score")
    assert list(curve)[:4] == ["0", "8", "16", "32"]
    assert list(curve)[-1] == "natural"
    assert curve["0"] == pytest.approx(1 / 6, abs=1e-3)
    assert curve["natural"] == stopped["natural"] == 1.0
    assert sorted(curve.values()) == list(curve.values())
    assert stopped["0"] == stopped["8"] == 0.0
    assert all(stopped[budget] <= curve[budget] for budget in curve)
    for outcome in outcomes:
        assert outcome.budget == "natural" or outcome.reasoning_tokens <= int(outcome.budget)


async def test_thinking_without_end_adds_no_budgets() -> None:
    items = list(held_out_items(("basic_arithmetic",), 4, 0))

    def script(prompt_ids: list[int]) -> Iterator[int]:
        """The last item's thought never ends, whatever is asked for."""
        question, said = reading(prompt_ids)
        if question == items[-1].question.strip() and "</think>" not in said:
            while True:
                yield from FMT.encode_text("1+1=2 ")
        yield from writes("2</think>\n\n2" if "</think>" not in said else "2")

    async with server_of(script) as (server, _):
        _, _, outcomes = await eval_budgets.measure(server, items, seed=5)
    endless = [outcome for outcome in outcomes if outcome.question == items[-1].question]
    assert [outcome.budget for outcome in endless] == ["0", "natural"]
    assert endless[-1].reasoning_tokens > 1000
    assert endless[-1].stopped_score == 0.0


@pytest.mark.parametrize("name", list(FAMILIES))
def test_an_answer_that_never_came_is_worth_nothing(name: str) -> None:
    for item in held_out_items((name,), 5, 0):
        assert score(item, "") == 0.0
        assert score(item, item.answer) == 1.0


@pytest.mark.parametrize(("wrong", "kept_wrong"), [(0, 0), (3, 3), (25, 25), (400, 25), (990, 40), (1000, 50)])
def test_a_result_keeps_at_most_fifty_outcomes_of_both_kinds(wrong: int, kept_wrong: int) -> None:
    outcomes = list(range(1000))
    kept = sampled(outcomes, lambda outcome: outcome >= wrong)
    assert len(kept) == 50
    assert kept == sorted(set(kept))
    assert sum(outcome < wrong for outcome in kept) == kept_wrong
    assert sampled(outcomes, lambda outcome: outcome >= wrong) == kept
    assert sampled(outcomes[:7], bool) == outcomes[:7]


async def test_an_evaluation_counts_all_and_keeps_a_sample() -> None:
    def script(prompt_ids: list[int]) -> Iterator[int]:
        _, said = reading(prompt_ids)
        yield from writes("2</think>\n\n2" if "</think>" not in said else "2")

    async with server_of(script) as (server, _):
        found = await eval_modes.evaluate(server, ("chain_sum",), 40, 1)
    assert found["asked"] == 80
    assert len(found["outcomes"]) == 50
    assert found["command"] == "twogear eval modes --items 40 --seed 1 --families chain_sum"


async def test_choosing_is_told_by_every_signal(tmp_path: Path) -> None:
    """The right half of the direct answers is as sure as the wrong one here, but for the tokens themselves."""
    items = list(held_out_items(("chain_sum",), 12, 1))
    answers = {item.question.strip(): item.answer for item in items}
    sure = set(list(answers)[:6])

    def script(prompt_ids: list[int]) -> Iterator[int]:
        question, said = reading(prompt_ids)
        right = answers[question]
        yield from writes(
            f"{right}</think>\n\n{right}" if "</think>" not in said else right if question in sure else "no"
        )

    async with server_of(script) as (server, _):
        found = await eval_auto.evaluate(server, ("chain_sum",), 12, 1)
    assert found["asked"] == 24
    assert found["summary"] == {"standard": 0.5, "reasoning": 1.0}
    assert found["oracle"]["accuracy"] == 1.0
    assert found["longest"]["reasoning"] >= found["tokens"]["reasoning"]
    assert set(found["signals"]) == {"sum", "mean", "least", "first", "entropy", "fitted"}
    without_wrong_drafts = found["oracle"]["tokens"] - found["longest"]["standard"]
    fewest = without_wrong_drafts / found["tokens"]["reasoning"] - 1e-3
    for lengths in found["signals"].values():
        for told in lengths.values():
            assert 0 <= told["auc"] <= 1
            assert told["tokens"]["1.0"] >= fewest
    assert found["curves"]["sum"][0]["threshold"] is None
    assert "oracle" in _text_of(eval_auto._table(found))
    assert "by fitted" in _plot_of(found, tmp_path)


async def test_drafts_that_trials_agree_with() -> None:
    """Where a question is a right draft's, all answers are the same; else each is another."""
    items = list(held_out_items(("chain_sum",), 12, 1))
    answers = {item.question.strip(): item.answer for item in items}
    sure, drawn = set(list(answers)[:6]), count()

    def script(prompt_ids: list[int]) -> Iterator[int]:
        question, said = reading(prompt_ids)
        thinks, right = "</think>" not in said, answers[question]
        draft = right if question in sure else f"no {next(drawn)}"
        yield from writes(f"{right}</think>\n\n{right}" if thinks else draft)

    mode = eval_auto._mode_of(Path("examples/twogear_tiny_auto.toml"))
    async with server_of(script) as (server, _):
        extras = eval_auto.Extras(3, "auto.toml", mode)
        found = await eval_auto.evaluate(server, ("chain_sum",), 12, 1, extras=extras)
    assert found["asked"] == 36
    assert found["command"].endswith("--families chain_sum --trials 3 --profile auto.toml")
    (longest,) = {str(found["longest"]["standard"])} & set(found["signals"]["agreement"])
    told = found["signals"]["agreement"][longest]
    assert told["auc"] == 1.0
    own = found["profile"]
    assert own["kept"] == 0.0  # the script has no 20 likeliest: the rest has all of the entropy
    assert own["accuracy"] == own["families"]["chain_sum"] == found["summary"]["reasoning"]
    assert "the profile's" in _text_of(eval_auto._table(found))


def test_a_profile_without_a_threshold_tells_nothing() -> None:
    with pytest.raises(UsageError, match="has no mode of kind auto with a threshold"):
        eval_auto._mode_of(Path("server/modes/profiles/twogear_tiny.toml"))


def _text_of(table: Table) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as shown:
        console.print(table)
    return shown.get()


async def test_an_evaluation_may_bound_thought_and_answer() -> None:
    def script(prompt_ids: list[int]) -> Iterator[int]:
        while True:
            yield from FMT.encode_text("again ")

    async with server_of(script) as (server, _):
        found = await eval_budgets.evaluate(server, ("chain_sum",), 2, 1, 100)
    assert list(found["summary"]) == ["0", "natural"]
    assert all(outcome["completion_tokens"] <= 100 for outcome in found["outcomes"])
    assert found["command"].endswith("--most-tokens 100")


def test_budgets_double_while_they_cut_something() -> None:
    assert eval_budgets.budgets_below(0) == [0]
    assert eval_budgets.budgets_below(8) == [0]
    assert eval_budgets.budgets_below(33) == [0, 8, 16, 32]


def finder(prompt_ids: list[int]) -> Iterator[int]:
    """Finds the codes asked for, but only in the first half of the text."""
    message, _ = reading(prompt_ids)
    _, text, question = message.split("\n\n")
    key = rf"the (?!code)\w+ \w+|\b(?:{'|'.join(NAMES)})\b"
    codes = {}
    sentences = text.split(". ")
    for sentence in sentences[: len(sentences) // 2]:
        if value := NEEDLE.search(sentence):
            codes[re.findall(key, sentence, re.IGNORECASE)[0].lower()] = value[1]
    yield from writes(", ".join(codes.get(asked.lower(), "none") for asked in re.findall(key, question)))


async def test_the_map_shows_where_needles_are_lost() -> None:
    async with server_of(finder) as (server, engine):
        _, outcomes = await eval_needles.measure(server, ("single", "distractors"), (1024, 2048), 44, 3)
    assert len(outcomes) == 44
    for outcome in outcomes:
        assert outcome.score == (1.0 if outcome.depth < 0.5 else 0.0) or outcome.depth == 0.5, outcome
        assert 0.9 * outcome.length < outcome.prompt_tokens + eval_needles.ANSWER_TOKENS <= outcome.length
    assert {outcome.family for outcome in outcomes} == {"single", "distractors"}
    result = eval_needles.summarize({}, outcomes, items=44, seed=3)
    assert result["summary"]["worst"] == 0.0
    assert 0.3 < result["summary"]["mean"] < 0.6
    assert result["grid"]["lengths"] == [1024, 2048]
    assert [len(row) for row in result["grid"]["accuracy"]] == [11, 11]
    assert all(request.sampling.temperature == 0.0 for request in engine.seen)


async def test_lengths_stay_within_the_context() -> None:
    async with server_of(finder, context=3000) as (server, _):
        _, outcomes = await eval_needles.measure(server, ("single",), None, 2, 0)
        assert {outcome.length for outcome in outcomes} == {1024, 2048}
        with pytest.raises(UsageError, match="4096 tokens are more than the server's context of 3000"):
            await eval_needles.measure(server, ("single",), (1024, 4096), 2, 0)
        with pytest.raises(UsageError, match="100 tokens are too few"):
            await eval_needles.measure(server, ("several",), (100,), 1, 0)


def test_the_plan_spreads_items_over_lengths_depths_and_families() -> None:
    needles = eval_needles.plan(("single", "several"), (100, 200), 66, 0)
    cells = {(length, needle.depth) for needle, length in needles}
    assert len(cells) == 22
    assert {(needle.family, length) for needle, length in needles} == {
        (family, length) for family in ("single", "several") for length in (100, 200)
    }
    assert [needle.depth for needle, _ in eval_needles.plan(("single",), (100,), 3, 0)] == [0.0, 0.5, 1.0]
    assert needles == eval_needles.plan(("single", "several"), (100, 200), 66, 0)


def test_lengths_are_numbers_of_tokens() -> None:
    assert eval_needles.parse_lengths("4K,1024") == (1024, 4096)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["needles", "--lengths", "4M"], "'4M' is no number of tokens"),
        (["needles", "--families", "chain_sum"], "'chain_sum' is none of single, distractors"),
        (["modes", "--lengths", "1024"], "--lengths goes with needles"),
        (["tools", "--most-tokens", "1024"], "--most-tokens goes with modes, auto, early, budgets and loops"),
        (["modes", "--level", "0"], "--level is 0 or more, and goes with auto, not with modes"),
        (["auto", "--level", "-1"], "--level is 0 or more"),
        (["modes", "--trials", "3"], "--trials goes with auto, not with modes"),
        (["early", "--profile", "x.toml"], "--profile goes with auto, not with early"),
        (["auto", "--trials", "17"], "--trials must be 0 to 16"),
        (["auto", "--every", "8"], "--every goes with early, not with auto"),
        (["early", "--every", "0"], "--every must be at least 1"),
        (["loops", "--families", "chain_sum"], "--families does not go with loops"),
        (["budgets", "--families", "several"], "'several' is none of chain_sum"),
        (["budgets", "--items", "0"], "--items must be at least"),
        (["needles", "--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def _plot_of(result: dict[str, Any], folder: Path) -> str:
    draw_plot(result, folder / "plot.svg")
    return (folder / "plot.svg").read_text()


def test_a_result_is_written_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = Table("mode")
    table.add_row("standard")
    show_result({"summary": {}}, table, None)
    assert not list(tmp_path.iterdir())
    assert "standard" in capsys.readouterr().out
    show_result({"summary": {}}, table, tmp_path / "here" / "result.json")
    assert json.loads((tmp_path / "here" / "result.json").read_text()) == {"summary": {}}


@pytest.mark.engine
def test_both_of_the_embedded_model(real_server: RealServer, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ["--url", real_server.url, "--seed", "7", "--json", str(path)]
    assert main(["eval", "budgets", "--items", "2", "--families", "chain_sum", *options]) == 0
    budgets = json.loads(path.read_text())
    assert list(budgets["summary"])[:2] == ["0", "8"]
    assert list(budgets["summary"])[-1] == "natural"
    assert all(0 <= accuracy <= 1 for accuracy in budgets["summary"].values())
    assert "stopped without an answer" in _plot_of(budgets, tmp_path)

    assert main(["eval", "needles", "--items", "4", "--lengths", "1024,2K", *options]) == 0
    needles = json.loads(path.read_text())
    assert set(needles["summary"]) == {"worst", "mean"}
    assert needles["grid"]["lengths"] == [1024, 2048]
    assert "2K" in _plot_of(needles, tmp_path)
