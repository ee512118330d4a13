"""Training text as batches of token ids: tasks, conversation, JSON, tools, needles, in one mode, grouped by length.

A stream is made of chunks; chunk k depends only on the recipe and k, so that a run resumes at any chunk.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, Protocol

import torch
from reasoning_gym.data import read_data_file

from chat_templates.format import ChatFormat
from chat_templates.messages import Message, Tool
from chat_templates.settings import THINKING
from tasks import conversation, needles, records, tool_use
from tasks.families import FAMILIES, Item, draw, rephrase
from training import copying, drafts
from training.modes import STYLES, Mode
from training.recipe import Mix

_BATCHES_PER_CHUNK = 20
_LENGTH_MULTIPLE = 8
_SYSTEM_SHARE = 0.05
_EARLY_CUT = 64  # tokens; the budgets of early cuts are uniform in their logarithm
_EASIER_SHARE = 0.3
_JSON_TASK_SHARE = 0.25
_FITTING_SHARE = 0.7
_MORE_TURNS_SHARE = 0.6
_MOST_EXCHANGES = 4
_MOST_CODES = 9
_MOST_SENTENCES = 48  # of filler, about 900 tokens
_FEWEST_SENTENCES = 5
_ONE_QUESTION_SHARE = 0.4
_NO_FILLER_SHARE = 0.5  # of the needles: from codes alone a model learns soonest how a code is told by its key
_SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are Twogear.", "Answer briefly.", "Be precise.")
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """`ids` and `labels`, both (batch, length) int64; labels are the next tokens, IGNORED where nothing is learnt.

    `counts` (batch, length) float32 tells how often a token counts in global layers (attention.py); None: once.
    """

    mode: Mode
    ids: torch.Tensor
    labels: torch.Tensor
    counts: torch.Tensor | None = None


@dataclass(frozen=True)
class Exchange:
    """A user's text with the reasoning and the answer to it.

    `spelled` is written letter by letter: how a tokenizer cuts a word of no language cannot be told from its letters.
    `draft` is the line that the thought begins with, if any; it is not learnt where it `is_misleading`.
    """

    prompt: str
    reasoning: str
    answer: str
    spelled: str = ""
    draft: str = ""
    is_misleading: bool = False

    @property
    def thought(self) -> str:
        """The reasoning, after the draft."""
        return self.draft + self.reasoning


def things() -> tuple[str, ...]:
    """Words of reasoning-gym's word list that unknown questions are about."""
    return tuple(read_data_file("words3to10.txt").split())


def _needle_exchange(needle: needles.Needle, sentences: int) -> Exchange:
    """The reasoning quotes the sentences that the answer is in."""
    quoted = [sentence for _, sentence in needle.placed[: len(needle.expected)]]
    return Exchange(needle.prompt(sentences), "\n".join(quoted), needle.answer)


class ExampleSource:
    """Draws exchanges by the mix's shares; `progress` (0 to 1) moves the curriculum."""

    def __init__(self, mix: Mix, fmt: ChatFormat) -> None:
        self.mix = mix
        self._format = fmt
        self._names = tuple(mix.families)
        self._weights = tuple(mix.families.values())
        self._things = things()

    @property
    def end_of_turn_id(self) -> int:
        """The token that every learnt answer ends with."""
        return self._format.end_of_turn_id

    def _grown(self, progress: float) -> float:
        """How far the curriculum is, 0 to 1."""
        return min(1.0, progress / self.mix.curriculum) if self.mix.curriculum else 1.0

    def _level(self, name: str, progress: float, rng: random.Random) -> int:
        """The curriculum's step: up to what the progress allows, sometimes an easier one."""
        top = len(FAMILIES[name].easier)
        if self.mix.hardest is not None:
            top = min(top, self.mix.hardest)
        reached = min(top, int(self._grown(progress) * (top + 1)))
        return rng.randint(0, reached) if rng.random() < _EASIER_SHARE else reached

    def exchange(self, progress: float, rng: random.Random) -> Exchange:
        """One exchange without tools: a line of conversation, a request for JSON, a drill, or a task."""
        mix = self.mix
        shares = (mix.conversation_share, mix.json_share, mix.copy_share)
        match rng.choices(range(4), (*shares, 1 - sum(shares)))[0]:
            case 0:
                return self._talk(rng)
            case 1:
                return self._json(progress, rng)
            case 2:
                drill = copying.draw(rng, self._things)
                return Exchange(drill.request, "I copy the words.", drill.answer)
            case _:
                return self._task(progress, rng)

    def _talk(self, rng: random.Random) -> Exchange:
        talk = conversation.draw(rng, self._things)
        return Exchange(talk.prompt, talk.thought, talk.reply)

    def item_exchange(self, item: Item) -> Exchange:
        """An item as it is asked and answered; the trace of a word that is spelled goes through it token by token."""
        family, metadata = FAMILIES[item.family], item.entry["metadata"]
        spelled = family.spelled(metadata)
        trace = family.trace({**metadata, "pieces": self._pieces(metadata["word"])}) if spelled else item.trace
        draft = "" if self.mix.wrong_draft_share is None else drafts.line(item.answer)
        return Exchange(item.question.strip(), trace, item.answer, spelled, draft)

    def _pieces(self, word: str) -> list[str]:
        """A word as the tokenizer cuts it."""
        return [self._format.decode([one]) for one in self._format.encode_text(word)]

    def _task(self, progress: float, rng: random.Random) -> Exchange:
        """A task in its own or in other words."""
        name = rng.choices(self._names, self._weights)[0]
        item = draw(name, rng, level=self._level(name, progress, rng))
        return self.item_exchange(rephrase(item, rng) if rng.random() < self.mix.rephrase_share else item)

    def _json(self, progress: float, rng: random.Random) -> Exchange:
        """A record asked for as JSON, or a task whose answer is."""
        if rng.random() < _JSON_TASK_SHARE:
            task = self._task(progress, rng)
            asked, answer = records.ask_for_json(task.prompt, rng), records.json_answer(task.answer)
            return replace(task, prompt=asked, answer=answer)
        extraction = records.draw(rng)
        return Exchange(extraction.request, extraction.thought, extraction.answer)

    def example(self, mode: Mode, progress: float, rng: random.Random) -> tuple[list[int], list[bool]]:
        """The ids of one conversation and which of them are learnt."""
        messages: list[Message] = []
        if rng.random() < _SYSTEM_SHARE:
            messages.append({"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)})
        if rng.random() < self.mix.tools_share:
            return self._with_tools(messages, mode, progress, rng)
        if rng.random() < self.mix.needles_share:
            return self._with_needles(messages, mode, progress, rng)
        while rng.random() < self.mix.history_share:
            past = self.exchange(progress, rng)
            messages += [{"role": "user", "content": past.prompt}, {"role": "assistant", "content": past.answer}]
        last = self.exchange(progress, rng)
        if mode == "standard":
            return self.render(messages, last, mode)
        is_cut = rng.random() < self.mix.cut_share
        is_early = is_cut and rng.random() < self.mix.early_cut_share
        if not is_early:
            last = self._misled(last, rng)
        return self._render_cut(messages, last, rng, is_early=is_early) if is_cut else self.render(messages, last, mode)

    def _misled(self, last: Exchange, rng: random.Random) -> Exchange:
        """Its draft wrong, in the recipe's share: what is worked out has to be told from what was guessed."""
        if not last.draft or rng.random() >= (self.mix.wrong_draft_share or 0.0):
            return last
        draft = drafts.wrong(last.draft, rng)
        return replace(last, draft=draft, is_misleading=draft != last.draft)

    def held_out(self, kind: str, mode: Mode, rng: random.Random) -> tuple[list[int], list[bool]]:
        """A held-out example: of a family, a record as JSON (`json`), a request that fits a tool (`tools`), a code to
        be found in a short text (`needles`).
        """
        if kind == "json":
            extraction = records.draw(rng, held_out=True)
            return self.render([], Exchange(extraction.request, extraction.thought, extraction.answer), mode)
        if kind == "tools":
            tools = tool_use.tool_set(rng)
            use = tool_use.use(rng.choice(tools), rng, held_out=True)
            messages = tool_use.exchange(use, (f"call_{number}" for number in count()))
            return self._format.render_conversation(messages[:2], STYLES[mode], [tool.schema() for tool in tools])
        if kind == "needles":
            needle = needles.draw(rng.choice(needles.RETRIEVAL), rng.random(), rng, held_out=True)
            return self.render([], _needle_exchange(needle, rng.randint(0, _MOST_SENTENCES)), mode)
        last = self.item_exchange(draw(kind, rng, level=self.mix.hardest, held_out=True))
        return self.render([], replace(last, draft=drafts.wrong(last.draft, rng), is_misleading=True), mode)

    def _with_needles(
        self, messages: list[Message], mode: Mode, progress: float, rng: random.Random
    ) -> tuple[list[int], list[bool]]:
        """Codes in a text that is asked about once or several times; short texts come first, and stay frequent."""
        most = _FEWEST_SENTENCES + (_MOST_SENTENCES - _FEWEST_SENTENCES) * self._grown(progress)
        sentences = 0 if rng.random() < _NO_FILLER_SHARE else int(most * rng.random() ** 1.5)
        if rng.random() < _ONE_QUESTION_SHARE:
            needle = needles.draw(rng.choice(needles.FAMILIES), rng.random(), rng)
            return self.render(messages, _needle_exchange(needle, sentences), mode)
        asked = needles.questions_on_one_text(rng, keys=rng.randint(1, _MOST_CODES), sentences=sentences)
        *past, last = (Exchange(question.prompt, question.sentence, question.answer) for question in asked)
        for one in past:
            messages += [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.answer}]
        return self.render(messages, last, mode)

    def _with_tools(
        self, messages: list[Message], mode: Mode, progress: float, rng: random.Random
    ) -> tuple[list[int], list[bool]]:
        """A conversation with tools in it: most requests fit one of them, the others are answered without.

        In reasoning mode, which learns the last turn only, it ends with any of the assistant's turns.
        """
        tools = tool_use.tool_set(rng)
        call_ids = (f"call_{number}" for number in count())
        begin = len(messages)
        for _ in range(_MOST_EXCHANGES):
            begin = len(messages)
            if rng.random() < _FITTING_SHARE:
                messages += tool_use.exchange(tool_use.use(rng.choice(tools), rng), call_ids)
            else:
                messages += self._without_call(tools, progress, rng)
            if rng.random() >= _MORE_TURNS_SHARE:
                break
        ends = [at + 1 for at in range(begin, len(messages)) if messages[at]["role"] == "assistant"]
        until = rng.choice(ends) if mode == "reasoning" else ends[-1]
        described: list[Tool] = [tool.schema() for tool in tools]
        return self._format.render_conversation(messages[:until], STYLES[mode], described)

    def _without_call(self, tools: list[tool_use.ToolKind], progress: float, rng: random.Random) -> list[Message]:
        """Conversation, or a task where no tool calculates."""
        calculates = any(parameter.pool == "expression" for tool in tools for parameter in tool.parameters)
        said = self._talk(rng) if calculates or rng.random() < 0.5 else self._task(progress, rng)
        answer: Message = {"role": "assistant", "content": said.answer, "reasoning_content": said.thought}
        return [{"role": "user", "content": said.prompt}, answer]

    def _render_cut(
        self, history: list[Message], last: Exchange, rng: random.Random, *, is_early: bool
    ) -> tuple[list[int], list[bool]]:
        """A conversation whose reasoning broke off somewhere, as a server ends it whose budget is spent.

        As there, a wrap-up is said where it takes at most half of the budget, and words before the end tag too. The
        thought as far as it goes and the answer are learnt, never what was said for the model.
        """
        fmt = self._format
        prompt = fmt.render([*history, {"role": "user", "content": last.prompt}], THINKING)
        thought = self._encode(last.thought, last.spelled)
        closings = [fmt.closing(words) for words in (self.mix.wrap_up, self.mix.short_wrap_up, "")]
        most = len(thought) + len(closings[0].last_words)
        budget = int(min(most, _EARLY_CUT) ** rng.random()) if is_early else rng.randrange(most)
        said = next((closing.last_words for closing in closings if len(closing.last_words) <= budget // 2), [])
        thought = thought[: min(budget - len(said), len(thought) - 1)]
        closing = [*said, *closings[0].tag, *closings[0].separator]
        answer = [*self._encode(last.answer, last.spelled), fmt.end_of_turn_id]
        unlearnt = self._unlearnt(last)
        parts = (
            (prompt, False),
            (thought[:unlearnt], False),
            (thought[unlearnt:], True),
            (closing, False),
            (answer, True),
        )
        return [one for ids, _ in parts for one in ids], [learnt for ids, learnt in parts for _ in ids]

    def _unlearnt(self, last: Exchange) -> int:
        """How many tokens at the thought's beginning are a draft that misleads."""
        return len(self._encode(last.draft, last.spelled)) if last.is_misleading else 0

    def render(self, history: list[Message], last: Exchange, mode: Mode) -> tuple[list[int], list[bool]]:
        """A conversation that ends with `last`, as the mode writes it."""
        answer = {"role": "assistant", "content": last.answer}
        if mode == "reasoning":
            answer["reasoning_content"] = last.thought
        messages = [*history, {"role": "user", "content": last.prompt}, answer]
        ids, mask = self._spell(*self._format.render_conversation(messages, STYLES[mode]), last.spelled)
        if mode == "reasoning":
            begin = mask.index(True)
            until = begin + self._unlearnt(last)
            mask[begin:until] = [False] * (until - begin)
        return ids, mask

    def _encode(self, text: str, spelled: str) -> list[int]:
        ids = self._format.encode_text(text)
        return self._spell(ids, [True] * len(ids), spelled)[0]

    def _spell(self, ids: list[int], mask: list[bool], word: str) -> tuple[list[int], list[bool]]:
        """The same text with the learnt occurrences of `word` as its letters."""
        whole = self._format.encode_text(word)
        letters = [one for letter in word for one in self._format.encode_text(letter)]
        spelled: tuple[list[int], list[bool]] = ([], [])
        at = 0
        while at < len(ids):
            found = word and mask[at] and ids[at : at + len(whole)] == whole
            spelled[0].extend(letters if found else ids[at : at + 1])
            spelled[1].extend([True] * len(letters) if found else mask[at : at + 1])
            at += len(whole) if found else 1
        return spelled


def collate(examples: list[tuple[list[int], list[bool]]], mode: Mode, pad_id: int = 0) -> Batch:
    """Right-padded tensors; label t is the token after t where that one is learnt."""
    length = max(len(ids) for ids, _ in examples) - 1
    length = -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    inputs = torch.full((len(examples), length), pad_id)
    labels = torch.full((len(examples), length), IGNORED)
    for row, (ids, mask) in enumerate(examples):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets = [token if learnt else IGNORED for token, learnt in zip(ids[1:], mask[1:], strict=True)]
        labels[row, : len(targets)] = torch.tensor(targets)
    return Batch(mode, inputs, labels)


Learns = Literal["answers", "everything"]


def chunk(source: ExampleSource, seed: str, index: int, progress: float, learns: Learns = "answers") -> Iterator[Batch]:
    """The batches of chunk `index`, both modes in the mix's ratio of tokens, in random order."""
    mix = source.mix
    rng = random.Random(f"{seed}/{index}")
    share = mix.reasoning_ratio / (1 + mix.reasoning_ratio)
    batches: list[Batch] = []
    modes: tuple[tuple[Mode, float], ...] = (("reasoning", share), ("standard", 1 - share))
    for mode, part in modes:
        budget = mix.batch_tokens * _BATCHES_PER_CHUNK * part
        examples = []
        while budget > 0:
            ids, learnt = source.example(mode, progress, rng)
            examples.append((ids, [True] * len(ids) if learns == "everything" else learnt))
            budget -= len(ids)
        examples.sort(key=lambda example: len(example[0]))
        group: list[tuple[list[int], list[bool]]] = []
        for example in examples:
            if group and (len(group) + 1) * len(example[0]) > mix.batch_tokens:
                batches.append(collate(group, mode))
                group = []
            group.append(example)
        batches.append(collate(group, mode))
    rng.shuffle(batches)
    yield from batches


class StreamPosition(Protocol):
    """Where a stream stands: the next batch is number `used` of chunk `chunk`, drawn at the progress `drawn_at`."""

    chunk: int
    used: int
    drawn_at: float


class ExampleStream:
    """Batches of a mix one after the other, from `at` on, which it moves on; the same after every restart."""

    def __init__(self, source: ExampleSource, seed: str, at: StreamPosition, learns: Learns = "answers") -> None:
        self._source, self._seed, self._learns = source, seed, learns
        self._at = at
        self._batches: list[Batch] = []

    def next(self, progress: float) -> Batch:
        """The next batch; `progress` decides how hard the examples of a new chunk are."""
        at = self._at
        if not self._batches:
            if at.used == 0:
                at.drawn_at = progress
            self._batches = list(chunk(self._source, self._seed, at.chunk, at.drawn_at, self._learns))
        batch = self._batches[at.used]
        at.used += 1
        if at.used == len(self._batches):
            at.chunk, at.used, self._batches = at.chunk + 1, 0, []
        return batch
