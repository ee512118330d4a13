"""Context extension: stages that end with the needle test, resuming, failing with a map; and all stages for real."""

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import Exaone4ForCausalLM

from chat_templates.format import ChatFormat
from evals.needles import Outcome, plan, summarize
from server.cli import main
from training import model as model_files
from training import recipe as recipes
from training import tokenizer as tokenizer_files
from training.extend import ExtendRun, GateNotPassedError
from training.recipe import ExtendRecipe, ExtendStage, Recipe

SMOKE = Path("training/recipes/smoke.toml")
CPU = torch.device("cpu")


class Measured:
    """In the gate's place: every cell of a test has the next of `scores`; keeps what was asked."""

    def __init__(self, *scores: float) -> None:
        self._scores = list(scores)
        self.lengths: list[list[int]] = []

    async def measure(self, families: tuple[str, ...], lengths: list[int], *, items: int, seed: int) -> dict[str, Any]:
        self.lengths.append(lengths)
        score = self._scores.pop(0)
        outcomes = [
            Outcome(needle.family, length, needle.depth, length, needle.question, needle.answer, "", score)
            for needle, length in plan(families, lengths, items, seed)
        ]
        return summarize({}, outcomes, items=items, seed=seed)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("start")
    size = recipes.load(SMOKE).model
    tokenizer_files.save(tokenizer_files.train(size.vocabulary_size, seed=1), folder)
    end = ChatFormat.from_folder(folder).end_of_turn_id
    config = model_files.build_config(size, eos_token_id=end, pad_token_id=0, bos_token_id=1)
    model_files.save(model_files.build(config, seed=5), folder)
    return folder


def recipe_from(start: Path, output: Path, **fields: object) -> Recipe:
    """The smoke recipe with its first two stages."""
    smoke = recipes.load(SMOKE)
    assert smoke.extend is not None
    fields = {"stages": smoke.extend.stages[:2], "gate": 0.9} | fields
    return msgspec.structs.replace(
        smoke, extend=msgspec.structs.replace(smoke.extend, start=str(start), output=str(output), **fields)
    )


def train(run: ExtendRun, gate: Measured) -> None:
    asyncio.run(run.train(gate))  # type: ignore[arg-type]  # measures without a server


def weights(run: ExtendRun) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


def records(run: ExtendRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_trains_on_until_its_test_is_passed(start: Path, tmp_path: Path) -> None:
    recipe = recipe_from(start, tmp_path / "out")
    assert recipe.extend is not None
    run = ExtendRun(recipe, tmp_path / "run", CPU)
    gate = Measured(1.0, 0.5, 0.95)
    train(run, gate)
    assert run.is_finished
    assert gate.lengths == [[256], [256, 512, 1024, 2048], [256, 512, 1024, 2048]]
    tests = [(one["length"], one["tokens"]) for one in records(run) if "needles" in one]
    assert tests[0] == (256, 0)  # the start passed at once
    least, more = recipe.extend.stages[1].least_tokens, recipe.extend.stages[1].most_tokens
    assert least <= tests[1][1] < more <= tests[2][1]
    assert all({"long", "short"} <= one.keys() for one in records(run) if one["step"] == 1 and "needles" not in one)

    run.export(tmp_path / "out")
    loaded = Exaone4ForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    before = Exaone4ForCausalLM.from_pretrained(start, dtype=torch.float32)
    assert not torch.equal(loaded.lm_head.weight, before.lm_head.weight)
    assert "2K" in (tmp_path / "out/training/needles-2048.svg").read_text()
    again = ExtendRun(recipe, tmp_path / "run", CPU)
    assert again.is_finished
    assert torch.equal(weights(again), weights(run))


def test_at_its_bound_a_stage_fails_with_the_map_and_does_not_train_on(start: Path, tmp_path: Path) -> None:
    recipe = recipe_from(start, tmp_path / "out")
    run = ExtendRun(recipe, tmp_path / "run", CPU)
    with pytest.raises(GateNotPassedError, match=r"length 2048: .* 12\.5%, not 90\.0%") as failure:
        train(run, Measured(1.0, 0.0, 0.125))
    assert Path(str(failure.value).rpartition(" ")[2]).exists()
    steps = run.step
    again = ExtendRun(recipe, tmp_path / "run", CPU)
    with pytest.raises(GateNotPassedError):
        train(again, Measured(0.0))
    assert again.step == steps
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_goes_on_where_it_stopped(start: Path, tmp_path: Path) -> None:
    recipe = recipe_from(start, tmp_path / "out", save_every=100)
    whole = ExtendRun(recipe, tmp_path / "whole", CPU)
    train(whole, Measured(1.0, 1.0))

    parts = ExtendRun(recipe, tmp_path / "parts", CPU)
    parts._go_on(passed=True)
    parts._train_step(parts.extend.stages[1])
    parts.save_state()
    parts._train_step(parts.extend.stages[1])  # is lost
    resumed = ExtendRun(recipe, tmp_path / "parts", CPU)
    assert [one["step"] for one in records(resumed)] == [1]
    train(resumed, Measured(1.0))
    assert resumed.step == whole.step == 2
    assert torch.equal(weights(resumed), weights(whole))


def test_the_rate_warms_up_and_falls_towards_every_test(start: Path, tmp_path: Path) -> None:
    stage = ExtendStage(2048, 4096, 1e-3, least_tokens=10_000, gate_every=5_000, most_tokens=90_000)
    run = ExtendRun(recipe_from(start, tmp_path / "out"), tmp_path / "run", CPU)
    run.stage_step = 0
    assert run.learning_rate(stage) == pytest.approx(0.5e-3)  # two steps of warm-up
    run.stage_step = 100
    for gates, begin, end in ((0, 0, 10_000), (1, 10_000, 15_000), (2, 15_000, 20_000)):
        run.gates = gates
        rates = []
        for run.tokens in range(begin, end + 1, 500):
            rates.append(run.learning_rate(stage))
        assert rates[0] == pytest.approx(1e-3)
        assert rates[-1] == pytest.approx(1e-4)
        assert all(later <= earlier for earlier, later in pairwise(rates))


def test_checkpointing_changes_no_gradient(start: Path, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        run = ExtendRun(recipe_from(start, tmp_path / "out"), tmp_path / f"run-{checkpointing}", CPU)
        run.model.train()
        if checkpointing:
            run.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        run._backward(run._long_batches(run.extend.stages[1]))
        found.append(run.model.model.embed_tokens.weight.grad)
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("lengths", "is_right"), [((4, 32, 128), True), ((4, 32), True), ((4, 16), False), ((), False)]
)
def test_lengths_stand_as_they_should(lengths: tuple[int, ...], is_right: bool) -> None:
    smoke = recipes.load(SMOKE).extend
    assert smoke is not None
    stages = [msgspec.to_builtins(smoke.stages[0]) | {"length": length} for length in lengths]
    fields = msgspec.to_builtins(smoke) | {"stages": stages}
    if is_right:
        assert len(msgspec.convert(fields, ExtendRecipe).stages) == len(lengths)
    else:
        with pytest.raises(msgspec.ValidationError, match="1 : 8 : 32"):
            msgspec.convert(fields, ExtendRecipe)


@pytest.mark.parametrize("path", sorted(SMOKE.parent.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_load(path: Path) -> None:
    assert recipes.load(path).sft.families


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    text = SMOKE.read_text().replace("runs/smoke", str(tmp_path))
    recipe.write_text(text)
    assert main(["train", "extend", "--recipe", str(recipe)]) == 2
    assert "extend.start: there is no checkpoint in" in capsys.readouterr().err
    assert main(["train", "sft", "--recipe", str(recipe), "--run", str(tmp_path / "run")]) == 2
    assert "pretrain: there is no checkpoint in" in capsys.readouterr().err
    recipe.write_text(text[: text.index("[extend]")])
    assert main(["train", "extend", "--recipe", str(recipe)]) == 2
    assert "no part [extend]" in capsys.readouterr().err


@pytest.mark.engine
@pytest.mark.timeout(900)  # about a minute where nothing else runs
def test_all_stages_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smoke recipe from nothing to the last checkpoint; a second run finds everything finished."""
    recipe = tmp_path / "smoke.toml"
    recipe.write_text(SMOKE.read_text().replace("runs/smoke", str(tmp_path)))
    command = ["train", "all", "--recipe", str(recipe), "--run", str(tmp_path / "run"), "--threads", "1"]
    assert main(command) == 0
    for folder in ("run/pretrain/checkpoint", "checkpoint", "extended", "agapo-checkpoint"):
        Exaone4ForCausalLM.from_pretrained(tmp_path / folder)
    lines = [json.loads(line) for line in (tmp_path / "run/extend/metrics.jsonl").read_text().splitlines()]
    assert [line["length"] for line in lines if "needles" in line] == [256, 2048, 8192]
    written = (tmp_path / "agapo-checkpoint/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.count(": finished, its checkpoint is in") == 4
    assert (tmp_path / "agapo-checkpoint/model.safetensors").stat().st_mtime_ns == written
