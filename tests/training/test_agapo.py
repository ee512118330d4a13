"""The reinforcement learning stage: what is asked, sampled, learnt and kept; and one real run with the engine."""

import asyncio
import json
import random
import re
from collections.abc import AsyncGenerator, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import Exaone4ForCausalLM

from chat_templates.format import ChatFormat
from engine.messages import Delta, Generate
from server.cli import main
from server.cli_errors import UsageError
from server.settings import EMBEDDED_MODEL
from tasks.families import held_out_items, is_held_out
from training import model as model_files
from training import recipe as recipes
from training.agapo import prompts as prompt_files
from training.agapo.compare import best, checks, compare, outcome, search
from training.agapo.compare import main as compare_command
from training.agapo.plot import draw_runs, summary
from training.agapo.rollouts import reward
from training.agapo.run import AgapoRun
from training.agapo.update import Learner, Report, Sequenced, batches, log_distributions
from training.recipe import METHODS, AgapoRecipe, Comparison, Method

SMOKE = Path("training/recipes/smoke.toml")
CPU = torch.device("cpu")
FMT = ChatFormat.from_folder(EMBEDDED_MODEL)
VOCABULARY: int = json.loads((EMBEDDED_MODEL / "config.json").read_text())["vocab_size"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint of the smoke recipe's size with the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("start")
    size = msgspec.structs.replace(recipes.load(SMOKE).model, vocabulary_size=VOCABULARY)
    config = model_files.build_config(size, eos_token_id=FMT.end_of_turn_id, pad_token_id=0, bos_token_id=1)
    model_files.save(config, model_files.build(config, 0).state_dict(), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((EMBEDDED_MODEL / name).read_bytes())
    return folder


def recipe_from(start: Path, output: Path, **fields: object) -> AgapoRecipe:
    smoke = recipes.load(SMOKE).agapo
    assert smoke is not None
    return msgspec.structs.replace(smoke, start=str(start), output=str(output), **fields)


class HalfRight:
    """An engine that answers every question rightly or wrongly by the request's seed, sums of legs always rightly."""

    def __init__(self, recipe: AgapoRecipe, seed: int) -> None:
        prompts = [prompt_files.make_prompt(recipe, seed, number, FMT) for number in range(recipe.prompts)]
        for mode in ("standard", "reasoning"):
            prompts += prompt_files.held_out_prompts(recipe, seed, FMT, mode)
        self._items = {tuple(prompt.ids): prompt.item for prompt in prompts}
        self.reloaded: list[Path] = []

    async def generate(self, request: Generate, kind: str = "") -> AsyncGenerator[Delta, None]:
        item = self._items[tuple(request.prompt_ids)]
        knows = item.family == "leg_counting" or random.Random(request.sampling.seed).random() < 0.5
        answer = FMT.encode_text(item.answer if knows else "no idea")
        thought = FMT.close_thinking("") if FMT.is_thinking_open(request.prompt_ids) else []
        yield Delta(request.request_id, thought)
        yield Delta(request.request_id, [*answer, FMT.end_of_turn_id], finish="stop")

    async def reload(self, folder: Path) -> None:
        Exaone4ForCausalLM.from_pretrained(folder)
        self.reloaded.append(folder)


def weights(run: AgapoRun) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.learner.policy.parameters()])


def records(run: AgapoRun) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_interrupted_goes_on_where_it_stopped(method: str, start: Path, tmp_path: Path) -> None:
    recipe = recipe_from(start, tmp_path / "out", method=method, steps=3, prompts=12)

    def trained(folder: str, until: int) -> AgapoRun:
        run = AgapoRun(msgspec.structs.replace(recipe, steps=until), 4, tmp_path / folder, CPU)
        asyncio.run(run.train(HalfRight(recipe, 4)))
        return run

    whole = trained("whole", 3)
    trained("parts", 1)
    resumed = trained("parts", 3)
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(whole), weights(AgapoRun(recipe, 4, tmp_path / "none", CPU)))
    assert [record["step"] for record in records(resumed)] == [0, 1, 2, 3]


def test_a_run_keeps_what_the_curves_need_and_exports(start: Path, tmp_path: Path) -> None:
    recipe = recipe_from(start, tmp_path / "out", prompts=12)
    run = AgapoRun(recipe, 4, tmp_path / "run", CPU)
    engine = HalfRight(recipe, 4)
    asyncio.run(run.train(engine))
    first, *steps = records(run)
    assert set(first["pass_rate"]) == {  # type: ignore[call-overload]
        f"{family}/{mode}" for family in recipe.families for mode in ("standard", "reasoning")
    }
    assert all(0 < record["reward"] < 1 and record["divergence"] >= 0 for record in steps)  # type: ignore[operator]
    assert len(engine.reloaded) == recipe.steps + 1
    run.export(tmp_path / "out")
    loaded = Exaone4ForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, run.learner.policy.lm_head.weight.to(torch.bfloat16))
    assert ChatFormat.from_folder(tmp_path / "out").end_of_turn_id == FMT.end_of_turn_id
    assert "reward of drawn answers" in (tmp_path / "out" / "training" / "agapo.svg").read_text()


def test_what_is_always_solved_is_dropped_first(start: Path, tmp_path: Path) -> None:
    recipe = recipe_from(start, tmp_path / "out", prompts=30)
    run = AgapoRun(recipe, 4, tmp_path / "run", CPU)
    asyncio.run(run._sift(HalfRight(recipe, 4)))
    pool = prompt_files.read_pool(run.folder / "pool.json")
    drawn = [prompt_files.make_prompt(recipe, 4, number, FMT).item for number in range(30)]
    assert {drawn[number].family for number in pool} == {"chain_sum"}
    assert 0 < len(pool) < 30
    assert not any(is_held_out(item.entry) for item in drawn)


def test_a_recipe_may_ask_easier_questions_only(start: Path, tmp_path: Path) -> None:
    recipe = recipe_from(start, tmp_path / "out", families={"chain_sum": 1.0}, hardest=0, evaluation_items=20)
    asked = [prompt_files.make_prompt(recipe, 4, number, FMT).item for number in range(20)]
    for item in asked + [prompt.item for prompt in prompt_files.held_out_prompts(recipe, 4, FMT, "reasoning")]:
        assert re.fullmatch(r"\d [-+] \d", item.entry["metadata"]["expression"])


def test_a_share_of_the_prompts_is_asked_in_standard_mode(start: Path, tmp_path: Path) -> None:
    recipe = recipe_from(start, tmp_path / "out", standard_share=0.25)
    run = AgapoRun(recipe, 4, tmp_path / "run", CPU)
    asked = [prompt_files.make_prompt(recipe, 4, number, FMT) for number in range(200)]
    standard = [prompt for prompt in asked if not FMT.is_thinking_open(prompt.ids)]
    assert 30 < len(standard) < 70
    assert all((prompt in standard) == (prompt.mode == "standard") for prompt in asked)
    for prompt, trace in zip(asked, run._traces(asked), strict=True):
        learnt = FMT.decode([one for one, is_learnt in zip(trace.ids, trace.learnt, strict=True) if is_learnt])
        assert (prompt.item.trace in learnt) == (prompt.mode == "reasoning")
        assert trace.ids[: len(prompt.ids)] == prompt.ids


def test_a_pool_of_solved_prompts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="every prompt was solved"):
        prompt_files.write_pool(tmp_path / "pool.json", {0: 4, 1: 4}, 4)


def test_every_prompt_is_asked_once_before_any_is_asked_again() -> None:
    steps = list(islice(prompt_files.order([3, 5, 7, 9], 1, 0, 2), 6))
    assert sorted(steps[0] + steps[1]) == sorted(steps[2] + steps[3]) == [3, 5, 7, 9]
    assert list(islice(prompt_files.order([3, 5, 7, 9], 1, 2, 2), 4)) == steps[2:]


def test_rewards_are_for_answers_after_the_thinking_of_ended_turns() -> None:
    (item,) = held_out_items(("chain_sum",), 1, 0)
    thinking = prompt_files.prompt_of(item, 0, FMT)
    direct = prompt_files.prompt_of(item, 0, FMT, "standard")
    answer, end = FMT.encode_text(item.answer), [FMT.end_of_turn_id]
    closing = FMT.close_thinking("")
    assert reward(FMT, thinking, [*closing, *answer, *end]) == 1
    assert reward(FMT, thinking, [*FMT.encode_text("12"), *closing, *answer, *end]) == 1
    assert reward(FMT, thinking, [*answer, *end]) == 0  # the thinking never ended
    assert reward(FMT, thinking, [*closing, *answer]) == 0  # the turn never ended
    assert reward(FMT, thinking, [*answer, *closing, *FMT.encode_text("none"), *end]) == 0
    assert reward(FMT, thinking, []) == 0
    assert reward(FMT, direct, [*answer, *end]) == 1


def learner_of(start: Path, recipe: AgapoRecipe) -> Learner:
    policy, reference = (Exaone4ForCausalLM.from_pretrained(start, dtype=torch.float32) for _ in range(2))
    return Learner(policy, reference, recipe)


def drawn_tokens(learner: Learner, prompt: list[int], count: int) -> torch.Tensor:
    with torch.no_grad():
        logits = learner.policy(torch.tensor([prompt])).logits[0, -1]
    return torch.multinomial(logits.softmax(-1), count, replacement=True)


PROMPTS = [[20, 30, 40], [50, 60], [70]]


def after(prompts: list[list[int]], tokens: torch.Tensor) -> list[Sequenced]:
    """Each prompt with each of the tokens in its row as a sequence."""
    return [
        Sequenced([*prompt, int(token)], [False] * len(prompt) + [True], index * len(row) + column)
        for index, (prompt, row) in enumerate(zip(prompts, tokens, strict=True))
        for column, token in enumerate(row)
    ]


@pytest.fixture(scope="module")
def writer(start: Path) -> Exaone4ForCausalLM:
    """A model that continues the prompts with one of the tokens 100 to 107: supervised, and a test of that."""
    learner = learner_of(start, recipe_from(start, start, method="sft", learning_rate=2e-2, group_size=8))
    tokens = torch.arange(100, 108).repeat(3, 1)
    losses = [learner.learn(after(PROMPTS, tokens), torch.zeros(3, 8)).loss for _ in range(40)]
    assert losses[0] > 6  # ln 1024 is 6.9, ln 8 is 2.08
    assert losses[-1] < 2.3
    return learner.policy


@pytest.mark.parametrize(("method", "updates"), [("agapo", 1), ("agapo", 2), ("grpo", 1), ("grpo", 2)])
def test_a_policy_learns_to_write_what_is_rewarded(
    method: str, updates: int, writer: Exaone4ForCausalLM, start: Path, tmp_path: Path
) -> None:
    """Of the tokens that the model writes the upper half is right."""
    torch.manual_seed(0)
    recipe = recipe_from(start, tmp_path, method=method, updates=updates, learning_rate=5e-3, group_size=8)
    learner = Learner(deepcopy(writer), deepcopy(writer), recipe)
    shares = []
    for _ in range(25):
        tokens = torch.stack([drawn_tokens(learner, prompt, 8) for prompt in PROMPTS])
        rewards = (tokens >= 104).float()
        shares.append(float(rewards.mean()))
        assert learner.learn(after(PROMPTS, tokens), rewards).divergence >= -1e-4
    assert shares[0] < 0.75  # before the first step; some policies are nearly there after the second
    assert sum(shares[-3:]) / 3 > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_how_a_step_is_cut_into_batches_does_not_matter(
    method: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    lengths = [rng.randint(2, 30) for _ in range(8)]
    sequences = [
        Sequenced([rng.randrange(20, 600) for _ in range(length + 3)], [False] * 3 + [True] * length, index)
        for index, length in enumerate(lengths)
    ]
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0]])
    gradients = []
    for batch_tokens in (40, 10_000):
        recipe = recipe_from(start, tmp_path, method=method, batch_tokens=batch_tokens, learning_rate=0.0)
        learner = learner_of(start, recipe)
        monkeypatch.setattr(learner.optimizer, "zero_grad", lambda **_: None)
        learner.learn(sequences, rewards)
        gradients.append(torch.cat([p.grad.flatten() for p in learner.policy.parameters() if p.grad is not None]))
    small, large = gradients
    assert torch.cosine_similarity(small, large, dim=0) > 0.999  # bfloat16 rounds differently in other shapes


def test_answers_are_learnt_as_hot_as_they_are_drawn(start: Path) -> None:
    model = Exaone4ForCausalLM.from_pretrained(start, dtype=torch.float32)
    (rows,) = batches([Sequenced([20, 30, 40, 50], [False, False, True, True], 0)], 100, CPU)
    with torch.no_grad():
        logits = model(rows.inputs).logits[0, 1:]
        found = log_distributions(model, rows, 2.0)
    assert torch.allclose(found, (logits / 2).log_softmax(-1), atol=0.02)
    assert not torch.allclose(found, logits.log_softmax(-1), atol=0.02)


def test_batches_keep_to_their_tokens_and_hold_every_sequence_once() -> None:
    sequences = [Sequenced(list(range(n + 2)), [False] + [True] * (n + 1), n) for n in (5, 90, 3, 40, 41, 7)]
    found: list[int] = []
    for rows in batches(sequences, 100, CPU):
        assert rows.inputs.numel() <= 100
        for row, index in enumerate(rows.indices.tolist()):
            ids = next(one.ids for one in sequences if one.index == index)
            assert rows.targets[row][rows.mask[row]].tolist() == ids[1:]
            assert rows.inputs[row, : len(ids) - 1].tolist() == ids[:-1]
        found += rows.indices.tolist()
    assert sorted(found) == sorted(one.index for one in sequences)


def test_the_band_of_a_curve_is_over_seeds(tmp_path: Path) -> None:
    assert summary([{0: 0.0, 2: 1.0}, {0: 1.0, 1: 5.0, 2: 2.0}]) == ([0, 2], [0.0, 1.0], [0.5, 1.5], [1.0, 2.0])
    paths = []
    for seed in range(2):
        lines = [
            {"step": 0, "pass_rate": {"a/reasoning": 0.5, "a/standard": 0.1}},
            {"step": 1, "reward": 0.4 + seed, "divergence": 0.1, "pass_rate": {"a/reasoning": 0.6, "a/standard": 0.1}},
        ]
        paths.append(tmp_path / f"{seed}.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_runs({"agapo": paths, "grpo": paths[:1]}, tmp_path / "plot.svg")
    assert all(label in (tmp_path / "plot.svg").read_text() for label in ("agapo", "grpo", "standard mode"))


def test_methods_are_compared_on_the_same_prompts_and_steps(start: Path, tmp_path: Path) -> None:
    recipe = recipe_from(start, tmp_path / "out", prompts=12)
    engine = HalfRight(recipe, 4)
    rates: dict[Method, float] = {"agapo": 1e-3, "grpo": 2e-3, "sft": 3e-3}
    metrics = asyncio.run(compare(recipe, rates, [4], tmp_path, engine))
    assert list(metrics) == list(METHODS)
    reloads = len(engine.reloaded)
    assert asyncio.run(compare(recipe, rates, [4], tmp_path, engine)) == metrics
    assert len(engine.reloaded) == reloads  # nothing is done twice
    assert len({(tmp_path / "seed-4" / method / "pool.json").read_text() for method in METHODS}) == 1
    for (path,) in metrics.values():
        assert [check["step"] for check in checks(path)] == [0, 2]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_equally_many_sequences_in_a_step(
    method: Method, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from(start, tmp_path / "out", prompts=40, method=method, steps=1)
    run = AgapoRun(recipe, 4, tmp_path / "run", CPU)
    learnt: list[int] = []
    learn = run.learner.learn

    def counted(sequences: Sequence[Sequenced], rewards: torch.Tensor) -> Report:
        learnt.append(len(sequences))
        return learn(sequences, rewards)

    monkeypatch.setattr(run.learner, "learn", counted)
    asyncio.run(run.train(HalfRight(recipe, 4)))
    assert learnt == [recipe.groups * recipe.group_size]


def test_each_method_is_tried_at_its_own_rates(start: Path, tmp_path: Path) -> None:
    """Two rates of each, a few steps: the best is the one whose last check is furthest above its first."""
    searched = Comparison({"agapo": (1e-4, 1e-2), "grpo": (1e-3,), "sft": (1e-4, 1e-3)}, search_seed=4, search_steps=2)
    recipe = recipe_from(start, tmp_path / "out", prompts=12, compare=searched)
    gains = asyncio.run(search(recipe, tmp_path, HalfRight(recipe, 4)))
    assert {method: tuple(found) for method, found in gains.items()} == searched.rates
    assert len(list((tmp_path / "search-4").glob("*/metrics.jsonl"))) == 5
    chosen = best({"agapo": {1e-4: 0.1, 1e-3: 0.3, 1e-2: 0.2}, "grpo": {1e-3: -0.1}, "sft": {1e-4: 0.1, 1e-3: 0.1}})
    assert chosen == {"agapo": 1e-3, "grpo": 1e-3, "sft": 1e-4}


def test_the_recipe_of_the_comparison_searches_with_another_seed(tmp_path: Path) -> None:
    agapo = recipes.load(Path("training/recipes/agapo.toml")).agapo
    assert agapo is not None
    assert agapo.compare is not None
    assert set(agapo.compare.rates) == set(METHODS)
    with pytest.raises(ValueError, match="searched with seed 9"):
        compare_command(Path("training/recipes/agapo.toml"), tmp_path, tmp_path / "result.json", [1, 9])
    with pytest.raises(ValueError, match="no part"):
        compare_command(SMOKE, tmp_path, tmp_path / "result.json", [1])
    text = Path("training/recipes/agapo.toml").read_text()
    (tmp_path / "bad.toml").write_text(re.sub("grpo = .*", "", text))
    with pytest.raises(ValueError, match="none for grpo"):
        recipes.load(tmp_path / "bad.toml")


def test_the_gain_counts_families_that_the_start_solves_somewhat(tmp_path: Path) -> None:
    rates = [
        {"a/reasoning": 0.5, "b/reasoning": 0.9, "a/standard": 0.1, "b/standard": 0.3},
        {"a/reasoning": 0.7, "b/reasoning": 0.2, "a/standard": 0.1, "b/standard": 0.2},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "pass_rate": rate}) + "\n" for step, rate in enumerate(rates)))
    gain = outcome({"agapo": [path, path]})["agapo"]
    assert gain == {"reasoning": pytest.approx(0.2), "standard": pytest.approx(-0.05)}
    path.write_text(path.read_text().replace('"a/reasoning": 0.5', '"a/reasoning": 0.95'))
    assert outcome({"agapo": [path]})["agapo"]["reasoning"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [(("[agapo]", "[agapos]"), "agapos"), (("groups = 4", 'groups = "four"'), "groups"), (("", ""), "train it first")],
)
def test_mistakes_are_one_line(
    change: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.toml"
    text = SMOKE.read_text().replace('start = "runs/', f'start = "{tmp_path}/')
    path.write_text(text.replace(*change) if change[0] else text)
    assert main(["train", "agapo", "--recipe", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.engine
def test_the_stage_with_the_engine(tmp_path: Path) -> None:
    """From the embedded checkpoint, two steps: answers are drawn by the engine, and by what the first step made."""
    recipe = tmp_path / "smoke.toml"
    text = SMOKE.read_text().replace('start = "runs/smoke/checkpoint"', f'start = "{EMBEDDED_MODEL}"')
    text = text.replace("group_size = 4", "group_size = 4\ntemperature = 1.4")  # or a good model solves everything
    recipe.write_text(text.replace('"runs/smoke/agapo-checkpoint"', f'"{tmp_path / "out"}"'))
    assert main(["train", "agapo", "--recipe", str(recipe), "--run", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/agapo/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["pass_rate"].keys() == lines[2]["pass_rate"].keys()
    assert abs(lines[1]["divergence"]) < 1e-5 < lines[2]["divergence"]  # the first step draws from the start itself
    assert max(lines[0]["pass_rate"].values()) > 0.5  # a trained model, asked and scored as a server would
    before, after = (
        Exaone4ForCausalLM.from_pretrained(folder).state_dict() for folder in (EMBEDDED_MODEL, tmp_path / "out")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
