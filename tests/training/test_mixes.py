"""The study of mixes: one model for each ratio, nothing done twice, and the plot; one mix for real."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.eval_plots import draw as draw_plot
from training import mixes
from training import recipe as recipes
from training.recipe import Recipe

SMOKE = Path("training/recipes/smoke.toml")


def write_recipe(path: Path, tokens: int) -> Path:
    """The smoke recipe with fewer tokens, and a context that ends an answer."""
    text = SMOKE.read_text().replace("tokens = 60_000", f"tokens = {tokens}")
    path.write_text(text.replace("window = 64", "window = 64\ncontext = 1024"))
    return path


def found(standard: float, reasoning: float) -> dict[str, Any]:
    """What a server might have said."""
    accuracy = {"standard": standard, "reasoning": reasoning}
    signs = {"standard": ("tag", "trace", "long"), "reasoning": ("empty", "short", "unclosed")}
    confusion = {mode: {"any": 0.25} | dict.fromkeys(names, 0.0) for mode, names in signs.items()}
    return {"summary": accuracy, "families": {"chain_sum": accuracy}, "confusion": confusion, "outcomes": []}


def test_each_mix_is_trained_once_and_the_result_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    async def ask(mix: Recipe, items: int) -> dict[str, Any]:
        asked.append(mix.sft.reasoning_ratio)
        if asked == [0.5, 3.0]:
            raise KeyboardInterrupt
        assert (Path(mix.output) / "model.safetensors").exists()
        return found(0.1 * mix.sft.reasoning_ratio, 0.5)

    monkeypatch.setattr(mixes, "_ask", ask)
    path, result = write_recipe(tmp_path / "recipe.toml", 4000), tmp_path / "result.json"
    command = [str(path), str(tmp_path / "runs"), str(result), "--ratios", "0.5,3", "--items", "4", "--threads", "1"]
    with pytest.raises(KeyboardInterrupt):
        mixes.main(command)
    trained = (tmp_path / "runs" / "ratio-3" / "state.pt").read_bytes()
    mixes.main(command)
    mixes.main(command)
    assert asked == [0.5, 3.0, 3.0]
    assert (tmp_path / "runs" / "ratio-3" / "state.pt").read_bytes() == trained

    content = json.loads(result.read_text())
    assert [mix["ratio"] for mix in content["mixes"]] == [0.5, 3.0]
    assert content["mixes"][1]["summary"] == {"standard": pytest.approx(0.3), "reasoning": 0.5}
    assert all(mix["tokens"] >= 4000 for mix in content["mixes"])
    draw_plot(content, tmp_path / "plot.svg")
    assert "reasoning: unclosed" in (tmp_path / "plot.svg").read_text()

    with pytest.raises(ValueError, match="mixes of another recipe, or with other items"):
        mixes.main([*command, "--items", "5"])


def test_mixes_differ_in_nothing_but_their_ratio(tmp_path: Path) -> None:
    recipe = recipes.load(SMOKE)
    one, other = (mixes.with_ratio(recipe, ratio, tmp_path) for ratio in (1.0, 3.0))
    assert one.sft.reasoning_ratio == 1.0
    assert msgspec.structs.replace(other, sft=one.sft) == one
    assert msgspec.structs.replace(other.sft, reasoning_ratio=1.0) == one.sft
    assert (one.pretrain, one.extend, one.agapo) == (None, None, None)


@pytest.mark.engine
def test_one_mix_for_real(tmp_path: Path) -> None:
    path, result = write_recipe(tmp_path / "recipe.toml", 4000), tmp_path / "result.json"
    mixes.main([str(path), str(tmp_path / "runs"), str(result), "--ratios", "1.5", "--items", "4"])
    (mix,) = json.loads(result.read_text())["mixes"]
    assert set(mix["summary"]) == {"standard", "reasoning"}
    assert len(mix["outcomes"]) == 8
    assert all(outcome["completion_tokens"] <= 384 for outcome in mix["outcomes"])
    assert mix["confusion"]["reasoning"]["any"] > 0  # it has learnt nothing
