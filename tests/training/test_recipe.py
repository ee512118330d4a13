"""The embedded checkpoint's recipe from fresh weights: every stage from the outcome of the one before it.

At a few steps: the real recipe with its own model and stages, in small batches of short texts.
"""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import Exaone4ForCausalLM

from server.cli import main
from server.cli_errors import UsageError
from server.settings import EMBEDDED_MODEL
from tasks.families import EMBEDDED
from training import extend, sft, stages
from training import recipe as recipes
from training.recipe import ExtendStage, MeanStage, Recipe, SftStage, Stage, scaled
from training.trainer import StoppedError, Trainer

from .conftest import with_tokenizer
from .test_extend import Measured

TINY = Path("training/recipes/tiny.toml")
CPU = torch.device("cpu")
LENGTHS = {1024: 256, 8192: 512, 32768: 1024}


def small(stage: Stage) -> Stage:
    """The same at a few steps, in batches and texts that take moments."""
    if isinstance(stage, MeanStage):
        return stage
    mix = msgspec.structs.replace(stage.mix, batch_tokens=256)
    if isinstance(stage, SftStage):
        return msgspec.structs.replace(stage, mix=mix, tokens=1000)
    length = LENGTHS[stage.length]
    return msgspec.structs.replace(
        stage,
        mix=mix,
        length=length,
        batch_tokens=length,
        gate_from=min(LENGTHS.values()),
        gate_items=33,
        least_tokens=1000,
        gate_every=500,
        most_tokens=5000,
    )


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    tiny = recipes.load(TINY)
    return msgspec.structs.replace(tiny, stages=tuple(map(small, tiny.stages)), check_every=10, save_every=3)


@contextmanager
def without_servers() -> Iterator[None]:
    """A stage's first needle test fails, its second passes; checks have one item of each kind; one thread runs all."""

    class Gate:
        def __init__(self, checkpoint: Path) -> None:
            tests_before = (checkpoint.parent / "metrics.jsonl").read_text().count('"needles"')
            self._measured = Measured(*[0.5, 1.0][tests_before % 2 :])

        async def __aenter__(self) -> Measured:
            return self._measured

        async def __aexit__(self, *_: object) -> None:
            """Ends nothing."""

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extend, "NeedleGate", Gate)
        patch.setattr(sft, "_CHECK_ITEMS", 1)
        yield
    torch.set_num_threads(threads)


def begin(recipe: Recipe, folder: Path, stop: Callable[[], bool] = lambda: False) -> Trainer:
    return Trainer(recipe, with_tokenizer(folder, EMBEDDED_MODEL), CPU, stop=stop)


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Run in one piece."""
    trainer = begin(recipe, tmp_path_factory.mktemp("whole"))
    with without_servers():
        stages.run(trainer)
    return trainer


def test_all_stages_run_in_order_from_fresh_weights(whole: Trainer, recipe: Recipe) -> None:
    assert [done.stage for done in whole.finished] == [stage.name for stage in recipe.stages]
    assert all((done.tokens > 0) != (done.stage == "mean") for done in whole.finished)
    loaded = Exaone4ForCausalLM.from_pretrained(whole.checkpoint)
    assert loaded.config.hidden_size == recipe.model.hidden_size
    records = [json.loads(line) for line in whole.files.metrics.read_text().splitlines()]
    tests = Counter(record["stage"] for record in records if "needles" in record)
    assert tests == {stage.name: 2 for stage in recipe.stages if isinstance(stage, ExtendStage)}
    assert {record["stage"] for record in records} == {s.name for s in recipe.stages if not isinstance(s, MeanStage)}


def test_pieces_on_other_machines_come_to_the_same(whole: Trainer, recipe: Recipe, tmp_path: Path) -> None:
    """Stopped after every few steps, with nothing but the one file taken along: the weights are the same bit by bit."""
    state: Path | None = None
    for piece in itertools.count():
        folder = tmp_path / str(piece)
        folder.mkdir()
        if state is not None:
            shutil.move(state, folder / "state.pt")
        trainer = Trainer(recipe, folder, CPU) if state else begin(recipe, folder)
        last = trainer.position.step + 9
        trainer.stop = lambda: trainer.position.step >= last  # noqa: B023  (asked while this piece runs)
        try:
            with without_servers():
                stages.run(trainer)
            break
        except StoppedError:
            state = trainer.files.state
    assert piece >= 3
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trainer.model.state_dict().items())
    assert [done.tokens for done in trainer.finished] == [done.tokens for done in whole.finished]


def test_the_last_stage_is_the_mean_of_what_it_names(whole: Trainer, recipe: Recipe) -> None:
    assert isinstance(recipe.stages[-1], MeanStage)
    assert not whole.ends  # nothing later needs them


def test_a_finished_run_is_left_alone(whole: Trainer, recipe: Recipe) -> None:
    written = (whole.checkpoint / "model.safetensors").stat().st_mtime_ns
    again = begin(recipe, whole.folder)
    stages.run(again)
    assert (whole.checkpoint / "model.safetensors").stat().st_mtime_ns == written


def test_the_state_of_another_recipe_is_refused(whole: Trainer, recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="another recipe"):
        begin(msgspec.structs.replace(recipe, seed=2), whole.folder)


def test_the_recipe_has_the_shape_and_families_of_the_embedded_checkpoint() -> None:
    tiny = recipes.load(TINY)
    config = json.loads((EMBEDDED_MODEL / "config.json").read_text())
    model = tiny.model
    assert (model.vocabulary_size, model.hidden_size, model.intermediate_size, model.layers, model.heads) == tuple(
        config[name]
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    )
    assert (model.kv_heads, model.head_size, model.window, model.context) == tuple(
        config[name] for name in ("num_key_value_heads", "head_dim", "sliding_window", "max_position_embeddings")
    )
    for stage in tiny.stages:
        assert isinstance(stage, MeanStage) or set(stage.mix.families) == set(EMBEDDED)


def test_scaling_changes_lengths_and_a_shorter_run_has_no_needle_tests() -> None:
    tiny = recipes.load(TINY)
    assert scaled(tiny, 1.0) == tiny
    for factor in (0.5, 2.0):
        for stage, one in zip(scaled(tiny, factor).stages, tiny.stages, strict=True):
            if isinstance(one, SftStage):
                assert stage == msgspec.structs.replace(one, tokens=round(one.tokens * factor))
            elif isinstance(one, ExtendStage):
                assert isinstance(stage, ExtendStage)
                assert stage.least_tokens == one.least_tokens * factor
                assert stage.gate_items == (0 if factor < 1 else one.gate_items)
                assert stage.most_tokens == (stage.least_tokens if factor < 1 else one.most_tokens * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "settle"', 'name = "tasks"'), "two have the name 'tasks'"),
        (('of = ["budgets", "again-32k", "settle"]', 'of = ["budgets", "later"]'), "no stage before it"),
        (('kind = "mean"', 'kind = "median"'), "median"),
        (("window = 128", 'window = "wide"'), "window"),
        (("[extend]", "[extent]"), "extent"),
    ],
)
def test_a_bad_recipe_names_what_is_wrong(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(TINY.read_text().replace(*change))
    with pytest.raises(ValueError, match=message):
        recipes.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "has no stage 'nothing': it has pretrain, tasks"),
        (["all", "--scale", "0"], "--scale"),
        (["all", "runs/tiny"], "goes with promote"),
        (["agapo"], "no part [agapo]"),
        (["promote"], "promote which run?"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
