"""Long texts to learn from: codes of all kinds in one haystack, asked for in the turns of one conversation.

A forward pass over a long text is dear and an answer short, so that one text teaches several answers. Drills are short
texts of codes alone, one for each of many keys: from a million tokens of them a model finds out how a code is told by
its key, and hardly from texts that are mostly filler. A text's filler may count several times in global layers, which
have no positions: so codes are lost in it as in a text so many times as long, at a fraction of the cost. The sentences
and the questions are needles.py's; nothing held out is among them.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from chat_templates.format import ChatFormat
from chat_templates.messages import Message
from chat_templates.settings import DIRECT
from tasks import needles
from tasks.needles import Needle, Sizing, haystack
from training.batches import Batch, collate
from training.modes import STYLES, Mode

_TOKENS_PER_QUESTION = 128  # of the text's length: its sentences, the question and its answer take about half of them
_MOST_DRAWS = 40  # for one question, before another kind is taken
_REASONING_SHARE = 0.1  # reasoning learns the last answer only
_FULL_LENGTH_SHARE = 0.5
_SHORTEST = 1 / 8
_DRILL_LENGTH = 384
_TOKENS_PER_CODE = 48  # of a drill: the sentence, the question, the answer
_MOST_KEYS = 9  # that share words


def long_batch(fmt: ChatFormat, length: int, questions: int, rng: random.Random, filler_counts: float = 1.0) -> Batch:
    """One text, half of the time of `length` tokens, else of an eighth of them or more, with `questions` at most.

    Its filler counts up to `filler_counts` times, uniform in the logarithm.
    """
    share = 1.0 if rng.random() < _FULL_LENGTH_SHARE else _SHORTEST ** rng.random()
    mode: Mode = "reasoning" if rng.random() < _REASONING_SHARE else "standard"
    ids, learnt = conversation(fmt, max(int(length * share), min(length, 256)), questions, mode, rng)
    batch = collate([(ids, learnt)], mode)
    if filler_counts == 1.0:
        return batch
    counts = torch.ones(batch.ids.shape)
    counts[0, : len(ids) - 1][torch.tensor(is_filler(fmt, ids[:-1]))] = filler_counts ** rng.random()
    return replace(batch, counts=counts)


def is_filler(fmt: ChatFormat, ids: Sequence[int]) -> list[bool]:
    """Which tokens of a conversation are of filler: of no control token, and in a sentence of filler alone."""
    pieces = {one: fmt.decode([one]) for one in set(ids)}
    ends = list(accumulate(len(pieces[one]) for one in ids))
    found = [sentence.span() for sentence in needles.FILLER.finditer("".join(pieces[one] for one in ids))]
    mask: list[bool] = []
    at = 0
    for one, end in zip(ids, ends, strict=True):
        while at < len(found) and found[at][1] < end:
            at += 1
        mask.append(bool(pieces[one]) and at < len(found) and found[at][0] < end)
    return mask


def drill_batch(fmt: ChatFormat, length: int, rng: random.Random) -> Batch:
    """As many drills as come to about `length` tokens, one at least."""
    own = min(length, _DRILL_LENGTH)
    return collate([_drill(fmt, own, rng) for _ in range(length // own)], "standard")


def _drill(fmt: ChatFormat, length: int, rng: random.Random) -> tuple[list[int], list[bool]]:
    """One code is asked for after another, of keys that share words where they are things; or three, or its holders."""
    codes = max(length // _TOKENS_PER_CODE, 1)
    if rng.random() < 0.5:
        kinds = ("several",) if rng.random() < 0.5 else ("variables",)
        return _answered(fmt, length, compatible(rng, max(codes // 3, 1), kinds), "standard", rng)
    asked = needles.questions_on_one_text(rng, keys=min(codes, _MOST_KEYS), sentences=0)
    messages: list[Message] = []
    for one in asked:
        messages += [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.answer}]
    while messages:
        ids, learnt = fmt.render_conversation(messages, DIRECT)
        if len(ids) <= length:
            return ids, learnt
        del messages[-2:]
    raise ValueError(f"a drill does not fit into {length} tokens")


def conversation(
    fmt: ChatFormat, length: int, questions: int, mode: Mode, rng: random.Random
) -> tuple[list[int], list[bool]]:
    """The ids, at most `length`, and which of them are learnt. Raises ValueError where not one question fits."""
    asked = compatible(rng, max(1, min(questions, length // _TOKENS_PER_QUESTION)))
    return _answered(fmt, length, asked, mode, rng)


def _answered(
    fmt: ChatFormat, length: int, asked: list[Needle], mode: Mode, rng: random.Random
) -> tuple[list[int], list[bool]]:
    """As many of the questions as fit, on one text, with their answers."""
    seed = rng.getrandbits(32)
    while True:
        try:
            return _fitted(fmt, length, asked, mode, seed)
        except ValueError:
            if len(asked) > 1:
                asked.pop()
            elif asked[0].family != "single":
                asked = compatible(rng, 1, ("single",))  # the shortest
            else:
                raise


def compatible(rng: random.Random, most: int, kinds: Sequence[str] = needles.FAMILIES) -> list[Needle]:
    """Up to `most` needles, at depths of equal likelihood, of which no two speak of the same key, holder or code."""
    families = rng.choices(kinds, k=most)
    families.sort(key=lambda family: family != "variables")  # first, for they need many names
    found: list[Needle] = []
    taken: frozenset[str] = frozenset()
    for family in [*families, *["single"] * most]:
        needle = _draw_apart(family, taken, rng) if len(found) < most else None
        if needle is not None:
            found.append(needle)
            taken |= needle.subjects
    rng.shuffle(found)
    return found


def _draw_apart(family: str, taken: frozenset[str], rng: random.Random) -> Needle | None:
    """A needle about nothing of `taken`; None where so many draws found none."""
    draws = (needles.draw(family, rng.random(), rng) for _ in range(_MOST_DRAWS))
    return next((needle for needle in draws if taken.isdisjoint(needle.subjects)), None)


def _fitted(fmt: ChatFormat, length: int, asked: list[Needle], mode: Mode, seed: int) -> tuple[list[int], list[bool]]:
    """With as much filler as fits."""
    sizing = Sizing(length)
    best: tuple[list[int], list[bool]] = [], []
    while (sentences := sizing.next) is not None:
        rendered = fmt.render_conversation(_messages(asked, sentences, mode, seed), STYLES[mode])
        if len(rendered[0]) <= length and sentences > sizing.best:
            best = rendered
        sizing.tell(len(rendered[0]))
    return best


def _messages(asked: list[Needle], sentences: int, mode: Mode, seed: int) -> list[Message]:
    """A question and its answer in turn, the text before the first; reasoning quotes what the answer is in."""
    placed = [one for needle in asked for one in needle.placed]
    text = haystack(placed, sentences, random.Random(seed))
    messages: list[Message] = []
    for needle in asked:
        prompt = needle.question if messages else f"{needle.opening}\n\n{text}\n\n{needle.question}"
        answer = {"role": "assistant", "content": needle.answer}
        if mode == "reasoning":  # only the last one's is rendered
            answer["reasoning_content"] = "\n".join(sentence for _, sentence in needle.placed[: len(needle.expected)])
        messages += [{"role": "user", "content": prompt}, answer]
    return messages
