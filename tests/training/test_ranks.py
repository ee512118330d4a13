"""Training by two processes that torchrun starts: what one computes, to rounding; either reads what the other wrote."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_impl.cpu.native import SWITCH
from server.cli import main
from server.cli_errors import UsageError
from training import footprint as footprints
from training import model as model_files
from training import native
from training import recipe as recipes
from training.batches import IGNORED
from training.footprint import footprint
from training.ranks import Ranks
from training.recipe import ExtendStage
from training.trainer import forward_loss

from . import rank_steps
from .conftest import SMOKE, with_tokenizer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAIN = [str(Path(sys.executable).with_name("twogear")), "train"]
LARGE = Path("tests/model_impl/configs/exaone-4.0-32b.json")
STAGES = """
[[stages]]
kind = "sft"
name = "first"
tokens = 4_000
learning_rate = 3e-3
warmup_steps = 2
decay = 0.3

[[stages]]
kind = "sft"
name = "second"
tokens = 4_000
learning_rate = 3e-3
warmup_steps = 2
decay = 0.3

[[stages]]
kind = "mean"
name = "mean"
of = ["first", "second"]

[agapo]
"""


def torchrun(*command: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {SWITCH: "0", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run([*TORCHRUN, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", autouse=True)
def without_kernels() -> Iterator[None]:
    """As two processes compute; on one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "0")
        native.kernels.cache_clear()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
    native.kernels.cache_clear()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short stages of fine-tuning and the mean of both."""
    path = tmp_path_factory.mktemp("recipe") / "short.toml"
    before, _, _ = SMOKE.read_text().partition("[[stages]]")
    _, _, agapo = SMOKE.read_text().partition("[agapo]\n")
    path.write_text(before.replace("check_every = 30", "check_every = 1000") + STAGES + agapo)
    return path


@pytest.fixture(scope="module")
def two_took_steps(recipe: Path, small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left what they computed."""
    folder = with_tokenizer(tmp_path_factory.mktemp("steps"), small_tokenizer)
    done = torchrun("-m", "tests.training.rank_steps", str(folder), str(recipe))
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_compute_what_one_does(
    two_took_steps: Path, recipe: Path, small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32. What is stepped along is orthogonal in bf16 (Muon), hence the weights' wider bound."""
    monkeypatch.setattr(torch, "autocast", torch.autocast)  # which the steps replace
    trainer, one = rank_steps.run(with_tokenizer(tmp_path, small_tokenizer), recipe, Ranks())
    two = torch.load(two_took_steps / "steps.pt")
    assert set(two["gradients"]) == set(one["gradients"])
    for name, gradient in one["gradients"].items():
        assert torch.allclose(two["gradients"][name], gradient, rtol=1e-4, atol=1e-6), name
    for found, expected in zip(two["losses"], one["losses"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4), (two["losses"], one["losses"])
    for name, weight in trainer.model.state_dict().items():
        assert torch.allclose(two["weights"][name], weight, atol=1e-3), name


def test_each_process_holds_what_the_footprint_says(two_took_steps: Path, recipe: Path) -> None:
    size = recipes.load(recipe).model
    config = model_files.build_config(size, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    expected = footprint(config, 2, tokens=96, learnt=96)
    first, second = (json.loads((two_took_steps / f"held-{rank}.json").read_text()) for rank in (0, 1))
    assert first == {name: getattr(expected, name) for name in ("weights", "gradients", "states")}
    assert all(second[name] <= first[name] for name in first)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint/model.safetensors")


def losses_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def copied(state: Path, to: Path) -> Path:
    """A folder that has nothing but the state."""
    to.mkdir()
    shutil.copy(state / "state.pt", to)
    return to


def train(*arguments: str, run: Path, recipe: Path) -> None:
    assert main(["train", *arguments, "--recipe", str(recipe), "--run", str(run), "--threads", "1"]) == 0


def train_by_two(*arguments: str, run: Path, recipe: Path) -> str:
    done = torchrun("--no-python", "--", *TRAIN, *arguments, "--recipe", str(recipe), "--run", str(run))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_either_goes_on_from_what_the_other_wrote(recipe: Path, small_tokenizer: Path, tmp_path: Path) -> None:
    """As the command trains, in bf16 products: losses and checkpoints alike, whoever began and whoever ended it.

    Weights differ by some hundredths: the first steps move them by most of what they are, along directions that are
    made orthogonal in bf16.
    """
    one, two = (with_tokenizer(tmp_path / name, small_tokenizer) for name in ("one", "two"))
    train("first", run=one, recipe=recipe)
    told = train_by_two("first", run=two, recipe=recipe)
    assert told.count("2 processes") == told.count("first: finished") == told.count("the checkpoint is in") == 1
    one_then_two, two_then_one = copied(one, tmp_path / "one-two"), copied(two, tmp_path / "two-one")
    train("all", run=one, recipe=recipe)
    train("all", run=two_then_one, recipe=recipe)
    train_by_two("all", run=one_then_two, recipe=recipe)
    expected, files = weights_of(one), sorted(path.name for path in (one / "checkpoint").iterdir())
    for run in (one_then_two, two_then_one):
        assert sorted(path.name for path in (run / "checkpoint").iterdir()) == files
        for record, alone in zip(losses_of(run), losses_of(one), strict=True):
            assert record == pytest.approx(alone, rel=0.01), run.name
        found = weights_of(run)
        assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in expected.items()}
        for name, weight in found.items():
            assert (weight - expected[name]).norm() < 0.1 * expected[name].norm(), (run.name, name)
    record = json.loads((one_then_two / "record.json").read_text())
    assert [stage["made_by"]["processes"] for stage in record["finished"]] == [1, 2, 2]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["agapo"], "agapo is not for 2 processes"),
        (["promote", "runs/none"], "promote is not for 2 processes"),
    ],
)
def test_what_is_for_one_process_is_refused_in_one_line(
    command: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    recipe: Path,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", *command, "--recipe", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    monkeypatch.setenv("RANK", "1")
    assert main(["train", *command, "--recipe", str(recipe)]) == 2
    assert not capsys.readouterr().err


def test_more_processes_than_a_step_has_long_texts_are_refused() -> None:
    smoke = recipes.load(SMOKE)
    extend = [stage for stage in smoke.stages if isinstance(stage, ExtendStage)]
    Ranks(0, 1).check(smoke.stages)
    Ranks(0, 2).check(extend[:2])
    with pytest.raises(UsageError, match=r"extend-8k: a step has 1 texts .* batch_tokens = 16384"):
        Ranks(0, 2).check(smoke.stages)


@pytest.mark.parametrize("rows", [[4], [3, 5], [1], [1, 1, 1], [1, 7, 2, 1]])
@pytest.mark.parametrize("size", [2, 3])
def test_what_all_learn_is_the_whole_step(rows: list[int], size: int) -> None:
    """Each token is learnt once, by one of them, and all take as many turns."""
    batches = [rank_steps.batch(count, 40, seed) for seed, count in enumerate(rows)]
    shares = [Ranks(rank, size).shares(batches) for rank in range(size)]
    assert len({len(of) for of in shares}) == 1
    learnt = [share.batch.labels[share.batch.labels != IGNORED] for of in shares for share in of]
    whole = [batch.labels[batch.labels != IGNORED] for batch in batches]
    assert torch.equal(torch.cat(learnt).sort().values, torch.cat(whole).sort().values)
    assert sum(share.weight for of in shares for share in of) == pytest.approx(size * len(batches))


def test_checkpointing_keeps_what_the_footprint_says(recipe: Path) -> None:
    """Of every layer its input, that of the norm and of the head, and nothing else that has a token's width."""
    size = recipes.load(recipe).model
    config = model_files.build_config(size, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    model = model_files.build(config, 1)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = rank_steps.batch(2, 96, 1)
    gc.collect()
    before = set(map(id, gc.get_objects()))
    loss, _ = forward_loss(model, batch)
    new = [one for one in gc.get_objects() if type(one) is torch.Tensor and id(one) not in before]
    wide = [one for one in new if one.shape == (2, 96, size.hidden_size)]
    kept = {one.data_ptr(): one.nbytes for one in wide if one.dtype == torch.float32}
    expected = footprint(config, 1, tokens=batch.ids.numel(), learnt=0)
    assert sum(kept.values()) == expected.inputs
    loss.backward()


def test_the_plan_for_the_large_model(capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of docs/training-history.md: so many bytes a parameter, over so many processes."""
    config = footprints.read_config(LARGE)
    parameters = sum(size.numel() for size in footprints.shapes(config).values())
    alone, many = (footprint(config, n, tokens=8192, learnt=1024) for n in (1, 64))
    assert 12 * parameters < alone.stays < 12.2 * parameters
    assert many.stays == pytest.approx(alone.stays / 64, rel=0.001)
    halved = footprint(config, 64, tokens=8192, learnt=1024, context_processes=2)
    assert (halved.inputs, halved.stays) == (many.inputs // 2, many.stays)
    footprints.main([str(LARGE), "--processes", "64"])
    assert f"64 | {many.weights / 2**30:.2f}" in capsys.readouterr().out
