"""The study of mixes: one model for each seed and ratio, nothing done twice, and the plot; one model for real."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from evals.plots import draw as draw_plot
from tasks.families import Item
from training import mixes
from training import recipe as recipes
from training.recipe import Mix

SMOKE = Path("training/recipes/smoke.toml")


def write_recipe(path: Path, tokens: int) -> Path:
    """The smoke recipe's fine-tuning alone with fewer tokens, and a context that ends an answer."""
    shared, _, *stages = SMOKE.read_text().split("[[stages]]\n")
    tasks = next(stage for stage in stages if 'name = "tasks"' in stage).replace("60_000", str(tokens))
    path.write_text(shared.replace("window = 64", "window = 64\ncontext = 1024") + "[[stages]]\n" + tasks)
    return path


def found(standard: float, reasoning: float) -> dict[str, Any]:
    """What a server might have said."""
    accuracy = {"standard": standard, "reasoning": reasoning}
    signs = {"standard": ("tag", "trace", "long"), "reasoning": ("empty", "short", "unclosed")}
    confusion = {mode: {"any": 0.25} | dict.fromkeys(names, 0.0) for mode, names in signs.items()}
    return {"summary": accuracy, "families": {"chain_sum": accuracy}, "confusion": confusion, "outcomes": []}


def test_each_model_is_trained_once_and_the_result_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    async def ask(checkpoint: Path, items: Sequence[Item], mix: Mix) -> dict[str, Any]:
        asked.append((int(checkpoint.parent.parent.name.removeprefix("seed-")), mix.reasoning_ratio))
        if len(asked) == 2:
            raise KeyboardInterrupt
        assert (checkpoint / "model.safetensors").exists()
        assert len(items) == 4
        return found(0.1 * mix.reasoning_ratio, 0.5)

    monkeypatch.setattr(mixes, "_ask", ask)
    path, result = write_recipe(tmp_path / "recipe.toml", 2000), tmp_path / "result.json"
    command = [str(path), str(tmp_path / "runs"), str(result), "--ratios", "0.5,3", "--items", "4", "--threads", "1"]
    with pytest.raises(KeyboardInterrupt):
        mixes.main(command)
    mixes.main([*command, "--so-far"])
    assert [model["ratio"] for model in json.loads(result.read_text())["models"]] == [0.5]
    last = tmp_path / "runs" / "seed-1" / "ratio-3" / "state.pt"
    trained = torch.load(last, weights_only=True)["model"]
    mixes.main(command)
    mixes.main(command)
    assert asked == [(1, 0.5), (1, 3.0), (1, 3.0)]
    assert all(torch.equal(weight, trained[name]) for name, weight in torch.load(last)["model"].items())

    content = json.loads(result.read_text())
    assert [(model["seed"], model["ratio"]) for model in content["models"]] == [(1, 0.5), (1, 3.0)]
    assert content["models"][1]["summary"] == {"standard": pytest.approx(0.3), "reasoning": 0.5}
    assert all(model["tokens"] >= 2000 for model in content["models"])
    draw_plot(content, tmp_path / "plot.svg")
    assert "reasoning: unclosed" in (tmp_path / "plot.svg").read_text()

    with pytest.raises(ValueError, match="models of another recipe, or with other items"):
        mixes.main([*command, "--items", "5"])


def test_models_differ_in_nothing_but_seed_and_ratio(tmp_path: Path) -> None:
    recipe = recipes.load(write_recipe(tmp_path / "recipe.toml", 2000))
    one, other = mixes.of_one(recipe, 1, 1.0), mixes.of_one(recipe, 2, 3.0)
    assert (one.seed, mixes.the_stage(one).mix.reasoning_ratio) == (1, 1.0)
    assert (other.seed, mixes.the_stage(other).mix.reasoning_ratio) == (2, 3.0)
    assert msgspec.structs.replace(other, seed=1, stages=one.stages) == one
    stage = mixes.the_stage(other)
    assert msgspec.structs.replace(stage, mix=mixes.the_stage(one).mix) == mixes.the_stage(one)


def test_a_recipe_of_several_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="one stage"):
        mixes.the_stage(recipes.load(SMOKE))


@pytest.mark.engine
def test_one_model_for_real(tmp_path: Path) -> None:
    path, result = write_recipe(tmp_path / "recipe.toml", 4000), tmp_path / "result.json"
    mixes.main([str(path), str(tmp_path / "runs"), str(result), "--ratios", "1.5", "--items", "4"])
    (model,) = json.loads(result.read_text())["models"]
    assert set(model["summary"]) == {"standard", "reasoning"}
    assert len(model["outcomes"]) == 8
    assert all(outcome["completion_tokens"] <= 384 for outcome in model["outcomes"])
    outcomes = [outcome for outcome in model["outcomes"] if outcome["mode"] == "reasoning"]
    told = sum(bool(outcome["confusion"]) for outcome in outcomes) / len(outcomes)
    assert model["confusion"]["reasoning"]["any"] == told
