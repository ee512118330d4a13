"""How the model spelled in tokens what it wrote lately, so that a conversation that comes back has the same ids.

A text has many spellings in tokens, and a model does not always write the tokenizer's own. A client sends back text;
were it tokenized afresh, the prompt would part from what the engine has in its cache where the spellings part, and the
model would read something else than it wrote. Only the spelling is replaced, never the text; of a tool call, which
templates write anew, never the JSON value. Knows ids and their text, not conversations.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from chat_templates.format import ChatFormat
from server.core.client_memory import ClientMemory

MOST_BYTES = 1 << 25
MOST_OF_ONE_PROMPT = 8
PROMPT_BYTES = 640
GENERATION_BYTES = 128
"""What is kept of a prompt, and of a generation beside its tokens: at least what they take."""

Owner = tuple[str, str]
"""Who shares a memory: the name of the API key, and the cache salt. What one makes the model write changes nothing for
another. The memory's size is shared by key, since salts are the client's to choose.
"""


class _Entry(NamedTuple):
    """What followed one prompt, newest last; `last_id` is the prompt's."""

    last_id: int
    generations: list["array[int]"]


class GeneratedTokens:
    """Remembers generations by the prompts that they followed, and by whose they are.

    Where `most_bytes` are not enough, those who have most of it lose their oldest.
    """

    def __init__(self, fmt: ChatFormat, most_bytes: int = MOST_BYTES) -> None:
        self._fmt = fmt
        self._most_bytes = most_bytes
        self._by_prompt: dict[bytes, _Entry] = {}
        self._memory = ClientMemory[bytes](most_bytes)
        self._last_ids = Counter[int]()  # of the prompts: where one may end in a longer one

    @property
    def size(self) -> int:
        """In bytes, not less than what it takes."""
        return self._memory.size

    def remember(self, prompt_ids: Sequence[int], token_ids: Sequence[int], owner: Owner = ("", "")) -> None:
        """The model wrote `token_ids` after `prompt_ids`; the control tokens at their end do not count as written."""
        length = len(token_ids)
        while length and token_ids[length - 1] in self._fmt.control_ids:
            length -= 1
        if not length or not prompt_ids or not self._most_bytes:
            return
        written = array("I", token_ids[:length])
        prompt = _hash(owner)
        prompt.update(array("I", prompt_ids))
        client, key = owner[0], prompt.digest()
        entry = self._entry(key, prompt_ids[-1], client)
        if written in entry.generations:
            return
        entry.generations.append(written)
        self._memory.count(client, key, _size(written))
        if len(entry.generations) > MOST_OF_ONE_PROMPT:
            self._memory.count(client, key, -_size(entry.generations.pop(0)))
        for _, forgotten in self._memory.overflow():
            self._forget(forgotten)

    def _entry(self, key: bytes, last_id: int, client: str) -> _Entry:
        entry = self._by_prompt.get(key)
        if entry is None:
            entry = self._by_prompt[key] = _Entry(last_id, [])
            self._last_ids[last_id] += 1
            self._memory.count(client, key, PROMPT_BYTES)
        return entry

    def restored(self, ids: list[int], owner: Owner = ("", "")) -> list[int]:
        """The same text as `ids`, spelled as the model wrote it wherever it stands after one of the owner's prompts.

        May run on any thread.
        """
        starts = [index for index, token_id in enumerate(ids, 1) if token_id in self._last_ids]
        result: list[int] = []
        prompt = _hash(owner)
        taken = 0
        for start in starts:
            if not taken <= start < len(ids):
                continue
            result += ids[taken:start]
            prompt.update(array("I", ids[taken:start]))
            taken = start
            entry = self._by_prompt.get(prompt.copy().digest())
            for written in reversed(entry.generations if entry else ()):
                end = self._same_text(ids, start, written)
                if end is not None:
                    result += written
                    prompt.update(written)
                    taken = end
                    break
        return result + ids[taken:]

    def _same_text(self, ids: list[int], start: int, written: Sequence[int]) -> int | None:
        """Where in `ids` the text of `written` ends that begins at `start`; None if other text stands there.

        It ends there only before a control token, or at the end of `ids`.
        """
        control = self._fmt.control_ids
        at = start
        for is_control, run in groupby(written, control.__contains__):
            mine = list(run)
            end = at + len(mine)
            if not is_control and (ids[at:end] != mine or not self._is_end(ids, end)):
                end = next((index for index in range(at, len(ids)) if ids[index] in control), len(ids))
                is_call = at > start and ids[at - 1] == self._fmt.tool_call_id
                same = _same_json if is_call else str.__eq__
                if not same(self._fmt.decode(ids[at:end]), self._fmt.decode(mine)):
                    return None
            elif ids[at:end] != mine:
                return None
            at = end
        return at if self._is_end(ids, at) else None

    def _is_end(self, ids: list[int], at: int) -> bool:
        return at >= len(ids) or ids[at] in self._fmt.control_ids

    def _forget(self, key: bytes) -> None:
        entry = self._by_prompt.pop(key)
        self._last_ids[entry.last_id] -= 1
        if not self._last_ids[entry.last_id]:
            del self._last_ids[entry.last_id]


def _hash(owner: Owner) -> "hashlib.blake2b":
    """Of the owner's prompts, whose ids are yet to come."""
    return hashlib.blake2b(digest_size=16, key=hashlib.blake2b(repr(owner).encode()).digest())


def _size(written: "array[int]") -> int:
    return GENERATION_BYTES + written.itemsize * len(written)


def _same_json(one: str, other: str) -> bool:
    try:
        return json.dumps(json.loads(one)) == json.dumps(json.loads(other))
    except (ValueError, RecursionError):
        return one == other
