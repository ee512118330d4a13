"""From the core's pieces to OpenAI's objects of a text completion: parts that make up a response or are its chunks."""

import codecs
from collections.abc import Sequence
from typing import NamedTuple

from chat_templates.events import AnswerText
from server.api.common.usage import usage
from server.core.choice import Choice
from server.core.events import LogprobEntry, Piece
from server.core.logprobs import prompt_entries, prompt_places
from server.core.plan import Plan
from server.core.serving import Serving
from server.errors import ApiError, JsonObject
from server.http.sse import DONE, encode_event

LOGPROB_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


class Told(NamedTuple):
    """What is told of probabilities: so many of the likeliest with the text's tokens, and with the prompt's as vLLM
    tells those; `names_ids`: tokens are named by their ids.
    """

    logprobs: int | None
    prompt_logprobs: int | None
    names_ids: bool


class Texts:
    """Makes the parts of all choices; `head` is what every object begins with.

    `echoes`: the prompt comes first in the text. Without `generates` it is all of it: the one token that the engine
    must generate to read a prompt is dropped.
    """

    def __init__(
        self,
        plan: Plan,
        choices: Sequence[Choice],
        serving: Serving,
        *,
        echoes: bool,
        generates: bool,
        told: Told,
    ) -> None:
        self.head: JsonObject = {
            "id": plan.id,
            "object": "text_completion",
            "created": plan.created,
            "model": plan.model,
            "system_fingerprint": serving.settings.system_fingerprint,
        }
        self.indices = range(len(choices))
        self._plan = plan
        self._choices = choices
        self._fmt = serving.fmt
        self._echoes = echoes
        self._generates = generates
        self._told = told
        self._offsets = [Offsets() for _ in choices]
        self._begun = [False for _ in choices]

    def empty(self, index: int) -> JsonObject:
        """A choice without text."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": None}

    def part(self, piece: Piece) -> JsonObject:
        """What a piece adds to its choice; the first may bring the prompt."""
        index = piece.choice
        is_first, self._begun[index] = not self._begun[index], True
        texts, entries = self._echo(index) if is_first and self._echoes else ([], [])
        if self._generates:
            texts += [event.text for event in piece.events if isinstance(event, AnswerText)]
            entries += (piece.logprobs or {}).get("content", [])
        logprobs = self._lists(index, entries) if entries else None
        part: JsonObject = {**self.empty(index), "text": "".join(texts), "logprobs": logprobs}
        if piece.token_ids is not None:
            part |= self._ids(index, piece.token_ids) if is_first else {"token_ids": piece.token_ids}
        return part

    def end(self, index: int) -> JsonObject:
        """How the choice ended."""
        choice = self._choices[index]
        if not self._generates:
            return {"finish_reason": "length", "stop_reason": None}
        return {"finish_reason": choice.finish, "stop_reason": choice.stop_reason}

    def whole(self, parts: Sequence[JsonObject], index: int) -> JsonObject:
        """The choice that has these parts."""
        ids = self._ids(index, self._choices[index].token_ids) if self._plan.shows_token_ids else {}
        return {**join_parts(parts), **ids, **self.end(index), **self._prompt_logprobs(index)}

    def usage(self) -> JsonObject:
        """The token counts."""
        counts = usage(self._plan, self._choices)
        if not self._generates:
            counts |= {"completion_tokens": 0, "total_tokens": self._plan.prompt_tokens}
        return counts

    def _ids(self, index: int, token_ids: list[int]) -> JsonObject:
        prompt_ids = self._plan.choices[index].prompt_ids
        return {"prompt_token_ids": prompt_ids, "token_ids": token_ids if self._generates else []}

    def _prompt_logprobs(self, index: int) -> JsonObject:
        top, entries = self._told.prompt_logprobs, self._choices[index].prompt_logprobs
        if top is None or entries is None:
            return {}
        return {"prompt_logprobs": prompt_places(self._fmt, top, self._plan.choices[index].prompt_ids, entries)}

    def _echo(self, index: int) -> tuple[list[str], list[LogprobEntry]]:
        plan, choice = self._plan.choices[index], self._choices[index]
        text = self._fmt.decode(plan.prompt_ids, show_control=True)
        top = self._told.logprobs
        if choice.prompt_logprobs is None or top is None:
            return [text], []
        entries = choice.prompt_logprobs
        return [text], prompt_entries(self._fmt, top, plan.prompt_ids, entries, names_ids=self._told.names_ids)

    def _lists(self, index: int, entries: list[LogprobEntry]) -> JsonObject:
        """The older shape: a list for each field, a dict of the likeliest for each token."""
        offsets = [self._offsets[index].next(bytes(entry["bytes"])) for entry in entries]
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [_likeliest(entry) for entry in entries],
            "text_offset": offsets,
        }


class Offsets:
    """Where the tokens of a text begin, in characters; one that goes on with a character begins where that does."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def next(self, token: bytes) -> int:
        """The place of the next token, given its bytes."""
        place = self._characters
        self._characters += len(self._decoder.decode(token))
        return place


class TextResponse:
    """The response to a request that was not streamed."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._parts = [[texts.empty(index)] for index in texts.indices]

    def add(self, piece: Piece) -> None:
        """Takes the next piece."""
        self._parts[piece.choice].append(self._texts.part(piece))

    def response(self) -> JsonObject:
        """The whole response, after the last piece."""
        texts = self._texts
        choices = [texts.whole(parts, index) for index, parts in enumerate(self._parts)]
        return {**texts.head, "choices": choices, "usage": texts.usage()}


class TextEvents:
    """The events of one streamed response, encoded. With `include_usage` each has the field, null but in the last;
    with `continuous_usage` it has the counts so far.
    """

    def __init__(self, texts: Texts, *, include_usage: bool, continuous_usage: bool = False) -> None:
        self._texts = texts
        self._continuous_usage = continuous_usage
        self._tail: JsonObject = {"usage": None} if include_usage else {}

    def begin(self) -> bytes:
        """Nothing: the first event is that of the first text."""
        return b""

    def piece(self, piece: Piece) -> bytes:
        """The event of a piece, if there is anything to tell of it."""
        part = self._texts.part(piece)
        if part["text"] or part["logprobs"] or part.get("token_ids") or "prompt_token_ids" in part:
            return self._event(part)
        return b""

    def finish(self) -> bytes:
        """How each choice ended and, if asked for, the token counts in an event without choices."""
        texts = self._texts
        ends = [self._event({**texts.empty(index), **texts.end(index)}) for index in texts.indices]
        if self._tail:
            ends.append(encode_event({**texts.head, "choices": [], "usage": texts.usage()}))
        return b"".join(ends) + DONE

    def error(self, error: ApiError) -> bytes:
        """OpenAI's error as the last event."""
        return encode_event(error.body())

    def _event(self, choice: JsonObject) -> bytes:
        tail = {"usage": self._texts.usage()} if self._continuous_usage else self._tail
        return encode_event({**self._texts.head, "choices": [choice], **tail})


def join_parts(parts: Sequence[JsonObject]) -> JsonObject:
    """One part of all those of a choice, in order."""
    lists: dict[str, list[object]] = {name: [] for name in LOGPROB_LISTS}
    for part in parts:
        if isinstance(part["logprobs"], dict):
            for name in LOGPROB_LISTS:
                lists[name] += part["logprobs"][name]
    text = "".join(str(part["text"]) for part in parts)
    return {**parts[-1], "text": text, "logprobs": lists if lists["tokens"] else None}


def _likeliest(entry: LogprobEntry) -> dict[str, float] | None:
    if entry["logprob"] is None:
        return None
    likeliest = {other["token"]: other["logprob"] for other in entry["top_logprobs"] if other["logprob"] is not None}
    return {**likeliest, entry["token"]: entry["logprob"]}
