"""Long texts to learn from: they fill their length, ask about all kinds, and answer what the text says."""

import random
import re
from pathlib import Path

import pytest
import torch

from chat_templates.format import ChatFormat
from tasks.needles import FAMILIES, Needle
from training import recipe as recipes
from training import tokenizer as tokenizer_files
from training.batches import IGNORED
from training.long_texts import compatible, conversation, drill_batch, is_filler, long_batch

SMOKE = recipes.load(Path("training/recipes/smoke.toml"))
_TURN = "[|endofturn|]"


@pytest.fixture(scope="module")
def fmt(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_files.save(tokenizer_files.train(SMOKE.model.vocabulary_size, SMOKE.seed), folder)
    return ChatFormat.from_folder(folder)


def test_no_two_needles_of_a_text_speak_of_the_same() -> None:
    kinds = set()
    for seed in range(20):
        needles = compatible(random.Random(seed), 12)
        assert len(needles) == 12
        subjects = [subject for needle in needles for subject in needle.subjects]
        assert len(subjects) == len(set(subjects))
        kinds |= {needle.family for needle in needles}
    assert kinds == set(FAMILIES)


def test_depths_cover_the_text_evenly() -> None:
    depths = [needle.depth for seed in range(60) for needle in compatible(random.Random(seed), 10)]
    thirds = [sum(third / 3 <= depth < (third + 1) / 3 for depth in depths) for third in range(3)]
    assert sum(thirds) == len(depths)
    assert min(thirds) > 0.25 * len(depths)


@pytest.mark.parametrize("length", [256, 1024, 4096])
def test_a_conversation_fills_its_length_with_a_question_a_turn(fmt: ChatFormat, length: int) -> None:
    for seed in range(3):
        ids, learnt = conversation(fmt, length, 8, "standard", random.Random(seed))
        assert 0.9 * length <= len(ids) <= length
        turns = ids.count(fmt.end_of_turn_id)
        assert turns % 2 == 0
        assert sum(learnt[at] for at, token in enumerate(ids) if token == fmt.end_of_turn_id) == turns // 2
        assert turns // 2 in ((8,) if length > 1024 else range(1, length // 128 + 1))


def test_a_text_too_short_for_a_chain_of_holders_asks_for_one_code(fmt: ChatFormat) -> None:
    """A length at which some of what is drawn first does not fit even alone."""
    for seed in range(60):
        ids, learnt = conversation(fmt, 128, 8, "standard", random.Random(seed))
        assert len(ids) <= 128
        assert any(learnt)


def test_codes_that_are_asked_for_are_in_the_text_with_their_keys(fmt: ChatFormat) -> None:
    ids, _ = conversation(fmt, 3000, 8, "standard", random.Random(3))
    text = fmt.decode(ids, show_control=True)
    story = text.split("\n\n")[1]
    questions = re.findall(r"\[\|user\|\]\n(.*?)\[\|endofturn\|\]", text, re.DOTALL)
    answers = re.findall(r"</think>\n\n(.*?)\[\|endofturn\|\]", text, re.DOTALL)
    assert len(questions) == len(answers) == 8
    for question, answer in zip(questions, answers, strict=True):
        asked = question.split("\n\n")[-1].lower()
        if not (codes := re.findall(r"\d+", answer)):
            continue  # holders of a code that the question names
        for code in codes:
            (sentence,) = [one for one in story.split(". ") if re.search(rf"\b{code}\b", one)]
            stated = Needle("single", 0.0, "", ((0.0, sentence),), "", (), 0).subjects - {code}
            assert all(subject in asked for subject in stated)


def test_reasoning_quotes_the_sentences_and_learns_the_last_answer_alone(fmt: ChatFormat) -> None:
    ids, learnt = conversation(fmt, 1500, 4, "reasoning", random.Random(5))
    text = fmt.decode(ids, show_control=True)
    said = fmt.decode([token for token, is_learnt in zip(ids, learnt, strict=True) if is_learnt], show_control=True)
    thought, answer = said.split("\n</think>\n\n")
    assert text.endswith(said)
    assert said.count(_TURN) == 1
    assert all(sentence in text.split("\n\n")[1] for sentence in thought.split("\n"))
    assert all(re.search(rf"\b{part}\b", thought) for part in answer.removesuffix(_TURN).split(", "))


@pytest.mark.parametrize(("length", "rows"), [(256, 1), (1024, 2)])
def test_a_drill_asks_for_one_code_after_another_for_three_or_for_holders(
    fmt: ChatFormat, length: int, rows: int
) -> None:
    kinds: set[str] = set()
    batches = [drill_batch(fmt, length, random.Random(seed)) for seed in range(10)]
    for batch in batches:
        assert batch.ids.shape[0] == rows
        assert batch.ids.shape[1] <= min(length, 384)
    for row in [row for batch in batches for row in batch.ids.tolist()]:
        text = fmt.decode(row, show_control=True)
        answers = [one.split(", ") for one in re.findall(r"</think>\n\n([\w, ]+)", text)]
        sizes = {len(one) for one in answers}
        if answers[0][0].isdigit():
            assert sizes in ({1}, {3})
            kinds.add(f"{sizes.pop()} codes")
        else:
            assert sizes <= {1, 2, 3}
            kinds.add("holders")
        assert len(answers) == text.count("[|user|]")
        every = [one for answer in answers for one in answer]
        assert len(set(every)) == len(every)
        story = text.split("\n\n")[1]
        assert all(one in story for one in every)
    assert kinds == {"1 codes", "3 codes", "holders"}


def test_half_of_the_texts_have_the_full_length_and_none_is_longer(fmt: ChatFormat) -> None:
    rng = random.Random(0)
    sizes = []
    for _ in range(16):
        batch = long_batch(fmt, 2048, 4, rng)
        assert (batch.labels != IGNORED).any()
        sizes.append(batch.ids.numel())
    assert max(sizes) <= 2048
    assert 4 <= sum(size > 1900 for size in sizes) <= 14
    assert min(sizes) < 1200


def test_filler_is_all_of_a_text_but_codes_and_questions(fmt: ChatFormat) -> None:
    ids, _ = conversation(fmt, 3000, 8, "standard", random.Random(3))
    mask = is_filler(fmt, ids)
    filler, rest = (
        fmt.decode([one for one, is_so in zip(ids, mask, strict=True) if is_so is side]) for side in (True, False)
    )
    assert len(filler) > 2 * len(rest)
    assert not re.search(r"\d|code", filler)
    assert not re.search(r"likes|walks|stands|morning|Nobody|Every day|There is", rest)
    whole, story = fmt.decode(ids), fmt.decode(ids).split("\n\n")[1]
    codes = sum(len(sentence) + 2 for sentence in story.split(". ") if "code" in sentence)
    assert abs(len(filler) - (len(story) - codes)) <= 2
    assert len(filler) + len(rest) == len(whole)


def test_filler_counts_up_to_so_many_times_and_nothing_else_does(fmt: ChatFormat) -> None:
    highest = 0.0
    for seed in range(20):
        plain = long_batch(fmt, 4096, 4, random.Random(seed))
        assert plain.counts is None
        batch = long_batch(fmt, 4096, 4, random.Random(seed), filler_counts=8.0)
        assert batch.counts is not None
        assert torch.equal(batch.ids, plain.ids)
        once, count = batch.counts.unique().tolist()
        assert once == 1.0 < count <= 8.0
        mask = torch.tensor([is_filler(fmt, batch.ids[0].tolist())])
        assert torch.equal(batch.counts > 1, mask)
        highest = max(highest, count)
    assert highest > 4.0
