"""Promotion: only what reaches the goals is copied, with a card that says what made it."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.cli import main
from server.cli_errors import UsageError
from server.settings import EMBEDDED_MODEL
from training import recipe as recipes
from training.goals import goals
from training.promote import WEIGHTS, promote, read_record

RECIPE = recipes.load(Path("training/recipes/tiny.toml"))


def results(**changes: Any) -> dict[str, dict[str, Any]]:
    """What a checkpoint that reaches every goal is found to do, but for `changes` of the summaries."""
    summaries = {
        "modes": {"standard": 0.5, "reasoning": 0.96},
        "tools": {"standard": 0.99, "reasoning": 0.98},
        "budgets": {"0": 0.5, "8": 0.495, "natural": 0.96},
        "needles": {"worst": 1.0, "mean": 1.0},
        "needles_128k": {"worst": 0.0, "mean": 0.95},
    } | changes
    found: dict[str, dict[str, Any]] = {}
    for name, summary in summaries.items():
        found[name] = {"command": f"twogear eval {name}", "summary": summary, "outcomes": [{"question": "long"}]}
    both = {"standard": 0.5, "reasoning": 0.96}
    found["modes"]["families"] = {"chain_sum": both}
    found["tools"]["kinds"] = {"call": both}
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's folder, with the embedded checkpoint as its own."""
    made_by = {"commit": "0123456789ab", "torch": "2", "device": "cpu", "threads": 2}
    finished = [
        {"stage": stage.name, "tokens": 1_000_000, "seconds": 600.0, "scale": 1.0, "made_by": made_by}
        for stage in RECIPE.stages
    ]
    record = {
        "digest": RECIPE.digest,
        "seed": 1,
        "tokens": 10_000_000,
        "hours": 1.7,
        "finished": finished,
        "recipe": msgspec.to_builtins(RECIPE),
    }
    folder = tmp_path / "run"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    for name in WEIGHTS:
        (folder / "checkpoint" / name).write_bytes((EMBEDDED_MODEL / name).read_bytes())
    return folder


def test_what_reaches_the_goals_is_copied_with_its_card(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "models" / "tiny"
    reached, is_promoted = promote(run, to, results())
    assert is_promoted
    assert len(reached) == 6
    assert {path.name for path in to.iterdir()} == {*WEIGHTS, "README.md", "training.json"}
    assert all((to / name).read_bytes() == (run / "checkpoint" / name).read_bytes() for name in WEIGHTS)
    card = (to / "README.md").read_text()
    for told in ("0123456789ab", "seed 1", "1.7 hours", RECIPE.digest, "96.0 %", "| settle |", "# tiny"):
        assert told in card
    assert "**no**" not in card
    kept = json.loads((to / "training.json").read_text())
    assert kept["record"]["digest"] == RECIPE.digest
    assert "outcomes" not in kept["results"]["modes"]


@pytest.mark.parametrize(
    ("change", "goal"),
    [
        ({"modes": {"standard": 0.5, "reasoning": 0.949}}, "reasoning mode right"),
        ({"modes": {"standard": 0.61, "reasoning": 0.959}}, "standard mode lower than reasoning mode by"),
        ({"tools": {"standard": 0.969, "reasoning": 0.99}}, "tools and JSON, the worse mode"),
        ({"needles": {"worst": 0.99, "mean": 1.0}}, "codes up to 32K, the worst cell"),
        ({"needles_128k": {"worst": 0.0, "mean": 0.9}}, "codes at 128K, on average"),
        ({"budgets": {"0": 0.5, "8": 0.489, "natural": 0.96}}, "largest step down of the budget curve"),
    ],
)
def test_what_is_below_a_goal_is_copied_only_where_that_is_asked_for(
    change: dict[str, Any], goal: str, run: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    reached, is_promoted = promote(run, to, results(**change))
    assert [one.name for one in reached if not one.is_reached] == [goal]
    assert not is_promoted
    assert not to.exists()
    _, is_promoted = promote(run, to, results(**change), even_if_below=True)
    assert is_promoted
    card = (to / "README.md").read_text()
    assert "below 1 of these goals" in card
    assert card.count("**no**") == 1


def test_without_128k_that_goal_is_not_told() -> None:
    found = results()
    del found["needles_128k"]
    assert len(goals(found)) == 5


def test_an_unfinished_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "record.json").read_text())
    record["finished"] = record["finished"][:-1]
    (run / "record.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="its stage mean is to be trained yet"):
        read_record(run)
    assert main(["train", "promote", str(run)]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_nothing_but_promotion_writes_into_models() -> None:
    """Every recipe's own outputs are in runs/, and no other file of training names the served folder."""
    for path in Path("training/recipes").glob("*.toml"):
        agapo = recipes.load(path).agapo
        assert agapo is None or agapo.output.startswith("runs/")
    naming = [path.name for path in Path("training").rglob("*.py") if "EMBEDDED_MODEL" in path.read_text()]
    assert naming == ["command.py"]
    assert not [path for path in Path("training").rglob("*.py") if '"models/' in path.read_text()]
