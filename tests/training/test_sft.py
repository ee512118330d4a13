"""The training loop for real, at smoke size: batches, resuming, and a checkpoint that transformers loads."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoTokenizer, Exaone4ForCausalLM

from server.modes.limits import plan_thinking
from server.modes.mode import ThinkClosing
from server.modes.profile import PROFILE_FOLDER, load_profile
from tasks.families import held_out_items
from tests.styles import STYLES, Mode, thinking_of
from training import drafts, stages
from training import recipe as recipes
from training.batches import IGNORED, ExampleSource, ExampleStream, chunk
from training.recipe import Mix, Recipe, SftStage
from training.sft import learning_rate
from training.trainer import Position, Trainer

SMOKE = Path("training/recipes/smoke.toml")
CPU = torch.device("cpu")
ONLY_TASKS = dict.fromkeys(
    ("conversation_share", "json_share", "copy_share", "tools_share", "needles_share", "history_share"), 0.0
)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The smoke recipe with its stage of fine-tuning alone."""
    smoke = recipes.load(SMOKE)
    return msgspec.structs.replace(smoke, stages=smoke.stages[1:2])


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = Trainer(recipe, tmp_path_factory.mktemp("run"), CPU)
    stages.run(trainer)
    return trainer


@pytest.fixture(scope="module")
def mix(recipe: Recipe) -> Mix:
    return tasks_of(recipe).mix


def tasks_of(recipe: Recipe) -> SftStage:
    (stage,) = recipe.stages
    assert isinstance(stage, SftStage)
    return stage


def test_training_lowers_the_loss(finished: Trainer) -> None:
    records = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(records) >= 2
    assert records[-1]["loss"]["reasoning"] < 0.8 * records[0]["loss"]["reasoning"]


def test_checkpoint_loads_in_transformers_and_computes_the_same(finished: Trainer) -> None:
    loaded = Exaone4ForCausalLM.from_pretrained(finished.checkpoint, dtype=torch.float32)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        expected = finished.model.eval()(ids).logits
        actual = loaded(ids).logits
    assert torch.allclose(actual.log_softmax(-1), expected.log_softmax(-1), atol=0.1)  # weights were rounded to bf16
    assert AutoTokenizer.from_pretrained(finished.checkpoint).eos_token == "[|endofturn|]"


def test_a_run_keeps_its_record_and_curve(finished: Trainer, recipe: Recipe) -> None:
    record = json.loads((finished.folder / "record.json").read_text())
    assert (record["digest"], record["seed"]) == (recipe.digest, recipe.seed)
    assert record["tokens"] == sum(stage["tokens"] for stage in record["finished"]) >= tasks_of(recipe).tokens
    assert record["finished"][0]["made_by"]["device"] == "cpu"
    curve = (finished.folder / "curve.svg").read_text()
    assert all(name in curve for name in ("chain_sum", "leg_counting", "million tokens"))


def test_batches_hold_both_modes_in_the_recipes_ratio(finished: Trainer, mix: Mix) -> None:
    real = {"standard": 0, "reasoning": 0}
    padded = 0
    for index in range(4):
        for batch in chunk(ExampleSource(mix, finished.fmt), "0", index, 1.0):
            used = int((batch.ids != 0).sum())
            real[batch.mode] += used
            padded += batch.ids.numel() - used
            assert batch.ids.numel() <= mix.batch_tokens * 1.5
    assert real["reasoning"] / real["standard"] == pytest.approx(mix.reasoning_ratio, rel=0.1)
    assert padded < 0.25 * sum(real.values())


def test_a_stream_goes_on_anywhere(finished: Trainer, mix: Mix) -> None:
    """From each position the same batches follow, whatever the progress is by then."""
    whole = Position()
    stream = ExampleStream(ExampleSource(mix, finished.fmt), "0", whole)
    for number in range(45):
        resumed = ExampleStream(ExampleSource(mix, finished.fmt), "0", replace(whole)) if number % 10 == 3 else None
        batch = stream.next(number / 45)
        assert resumed is None or torch.equal(resumed.next(1.0 if whole.used > 1 else number / 45).ids, batch.ids)
    assert whole.chunk > 0


def test_a_recipe_may_stop_at_easier_items(finished: Trainer, mix: Mix) -> None:
    fmt = finished.fmt
    easy = msgspec.structs.replace(mix, families={"chain_sum": 1.0}, hardest=0, rephrase_share=0.0, **ONLY_TASKS)
    source = ExampleSource(easy, fmt)
    rng = random.Random(0)
    drawn = [source.example("standard", 1.0, rng) for _ in range(20)]
    checked = [source.held_out("chain_sum", "standard", rng) for _ in range(20)]
    for ids, _ in drawn + checked:
        _, _, question = fmt.decode(ids, show_control=True).partition("[|user|]\n")
        assert re.search(r"(?<!\d)\d [-+] \d(?!\d)", question), question


def test_only_generated_tokens_are_learnt(finished: Trainer) -> None:
    fmt = finished.fmt
    source = ExampleSource(tasks_of(finished.recipe).mix, fmt)
    item = next(held_out_items(("chain_sum",), 1, 0))
    for mode, expected in (
        ("standard", f"{item.answer}[|endofturn|]"),
        ("reasoning", f"{item.trace}\n</think>\n\n{item.answer}[|endofturn|]"),
    ):
        ids, mask = source.render([], source.item_exchange(item), mode)  # type: ignore[arg-type]
        learnt = [token for token, is_learnt in zip(ids, mask, strict=True) if is_learnt]
        assert fmt.decode(learnt, show_control=True) == expected


def test_cut_reasoning_ends_as_a_server_ends_it(finished: Trainer, mix: Mix) -> None:
    """What the server plans for a budget is what stands between thought and answer, and none of it is learnt."""
    fmt = finished.fmt
    profile = thinking_of(load_profile(PROFILE_FOLDER / "twogear_tiny.toml"))
    always = msgspec.structs.replace(mix, cut_share=1.0, rephrase_share=0.0, **ONLY_TASKS)
    assert (always.wrap_up, always.short_wrap_up) == profile.wrap_ups[:2]
    said = set()
    rng = random.Random(0)
    budgets = set()
    for _ in range(200):
        ids, mask = ExampleSource(always, fmt).example("reasoning", 1.0, rng)
        begin, end = (len(ids) - 1 - ids[::-1].index(tag) for tag in (fmt.think_id, fmt.think_end_id))
        prompt = fmt.decode(ids[begin : begin + 2], show_control=True)
        assert prompt == "<think>\n"
        budget = end - begin - 2
        plan = plan_thinking(10_000, budget, profile, ThinkClosing.of(profile, fmt))
        thought = ids[begin + 2 : begin + 2 + plan.max_tokens]
        rest = [*plan.wrap_up, *plan.closing]
        answer = ids[begin + 2 + len(thought) + len(rest) :]
        assert ids[begin + 2 :] == [*thought, *rest, *answer]
        assert re.fullmatch(r"-?\d+\[\|endofturn\|\]", fmt.decode(answer, show_control=True))
        learnt = [*[True] * len(thought), *[False] * len(rest), *[True] * len(answer)]
        assert mask == [False] * (begin + 2) + learnt
        budgets.add(budget)
        said.add(fmt.decode(list(plan.wrap_up)).strip())
    assert said == {profile.wrap_up.strip(), profile.short_wrap_up.strip(), ""}
    assert {1, 2, 3} < budgets
    assert max(budgets) > 40


def test_labels_are_the_next_tokens(finished: Trainer, mix: Mix) -> None:
    batch = next(chunk(ExampleSource(mix, finished.fmt), "0", 0, 1.0))
    labels, following = batch.labels[:, :-1], batch.ids[:, 1:]
    inside = (labels != IGNORED) & (following != 0)  # the end of the turn is a label only, never an input
    assert inside.any()
    assert torch.equal(labels[inside], following[inside])
    last = batch.labels[torch.arange(len(labels)), (batch.labels != IGNORED).int().cumsum(1).argmax(1)]
    assert (last == finished.fmt.end_of_turn_id).all()


def test_rate_warms_up_stays_and_falls(recipe: Recipe) -> None:
    stage = tasks_of(recipe)
    rates = [learning_rate(stage, step, step / 100) for step in range(101)]
    assert rates[0] < rates[4] == stage.learning_rate == rates[60]
    assert all(later <= earlier for earlier, later in pairwise(rates[5:]))
    assert rates[100] == 0.0


def test_a_bad_recipe_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(SMOKE.read_text().replace("window = 64", 'window = "wide"'))
    with pytest.raises(ValueError, match=r"window"):
        recipes.load(path)
    path.write_text(SMOKE.read_text() + "\n[sfd]\n")
    with pytest.raises(ValueError, match="sfd"):
        recipes.load(path)


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_a_word_of_no_language_is_learnt_letter_by_letter(finished: Trainer, mode: Mode) -> None:
    fmt = finished.fmt
    source = ExampleSource(tasks_of(finished.recipe).mix, fmt)
    for item in held_out_items(["spell_backward"], 20, seed=5):
        exchange = source.item_exchange(item)
        ids, mask = source.render([], exchange, mode)
        learnt = [one for one, is_learnt in zip(ids, mask, strict=True) if is_learnt]
        assert len(ids) == len(mask)
        assert [fmt.decode([one]) for one in learnt[-1 - len(item.answer) : -1]] == list(item.answer)
        answer: Any = {"role": "assistant", "content": item.answer, "reasoning_content": exchange.reasoning}
        plain, _ = fmt.render_conversation([{"role": "user", "content": exchange.prompt}, answer], STYLES[mode])
        assert fmt.decode(ids, show_control=True) == fmt.decode(plain, show_control=True)


def test_a_spelled_word_is_gone_through_as_the_tokenizer_cuts_it(finished: Trainer) -> None:
    fmt = finished.fmt
    source = ExampleSource(tasks_of(finished.recipe).mix, fmt)
    several = 0
    for item in held_out_items(["spell_backward"], 20, seed=5):
        *pieces, backward, answer = source.item_exchange(item).reasoning.splitlines()
        words = [line.partition(":")[0] for line in pieces]
        assert "".join(words) == item.answer[::-1]
        assert all(len(fmt.encode_text(word)) == 1 for word in words)
        numbered = " ".join(line.partition(":")[2] for line in pieces).split(" ")
        assert numbered == [f"{place}{letter}" for place, letter in enumerate(item.answer[::-1], 1)]
        assert backward.split(" ") == numbered[::-1]
        assert answer == item.answer
        several += len(words) > 1
    assert several


def test_a_thought_begins_with_a_draft_that_is_learnt_only_where_it_is_right(finished: Trainer, mix: Mix) -> None:
    fmt = finished.fmt
    drafting = msgspec.structs.replace(
        mix, families={"chain_sum": 1.0}, cut_share=0.0, wrong_draft_share=0.5, **ONLY_TASKS
    )
    source = ExampleSource(drafting, fmt)
    rng = random.Random(0)
    kinds = Counter[bool]()
    for _ in range(100):
        ids, mask = source.example("reasoning", 1.0, rng)
        _, _, generated = fmt.decode(ids, show_control=True).partition("<think>\n")
        learnt = fmt.decode([one for one, is_learnt in zip(ids, mask, strict=True) if is_learnt], show_control=True)
        draft, _, worked_out = generated.partition("?\n")
        is_right = draft == worked_out.partition("</think>\n\n")[2].removesuffix("[|endofturn|]")
        assert re.fullmatch(r"-?\d+", draft)
        assert learnt == (generated if is_right else worked_out)
        kinds[is_right] += 1
    assert min(kinds.values()) > 30


def test_an_early_cut_never_follows_a_wrong_draft(finished: Trainer, mix: Mix) -> None:
    """The model's own first guess is the best it has until something is worked out."""
    fmt = finished.fmt
    for early, expected in ((1.0, {True}), (0.0, {True, False})):
        drafting = msgspec.structs.replace(
            mix,
            families={"chain_sum": 1.0},
            **ONLY_TASKS,
            cut_share=1.0,
            early_cut_share=early,
            wrong_draft_share=0.5,
        )
        source = ExampleSource(drafting, fmt)
        rng = random.Random(0)
        kinds = set()
        for _ in range(100):
            ids, mask = source.example("reasoning", 1.0, rng)
            _, _, generated = fmt.decode(ids, show_control=True).partition("<think>\n")
            draft, is_whole, _ = generated.partition("?\n")
            learnt = fmt.decode([one for one, is_learnt in zip(ids, mask, strict=True) if is_learnt])
            answer = generated.rpartition("</think>\n\n")[2].removesuffix("[|endofturn|]")
            if is_whole:
                kinds.add(draft == answer)
                assert learnt.startswith(f"{draft}?") == (draft == answer)
        assert kinds == expected


@pytest.mark.parametrize(("answer", "changes"), [("-17.5", True), ("3", True), ("sun, dog", False)])
def test_a_wrong_draft_has_other_digits_in_the_same_places(answer: str, changes: bool) -> None:
    rng = random.Random(0)
    for _ in range(20):
        wrong = drafts.wrong(answer, rng)
        assert re.sub(r"\d", "0", wrong) == re.sub(r"\d", "0", answer)
        assert (wrong != answer) == changes
