"""Log-probabilities of tokens, with their texts: those of the answer, and apart from them those of the thinking.

Control tokens have none, nor has text in tags or the newlines that belong to the end of the thinking; tokens that were
said for the model (wrap-up, closing) were never drawn.
"""

from collections.abc import Sequence

from chat_templates.format import ChatFormat
from engine.messages import TokenLogprob
from server.core.choice import Advance
from server.core.events import LogprobEntry, TokenEntry
from server.errors import JsonObject

LEAST = -9999.0  # for what is impossible, as OpenAI says it; JSON has no infinity
NEWLINES_AFTER_THINKING = 2
NEWLINES_BEFORE_THINKING = 1


class LogprobReader:
    """Sorts the entries of one choice's tokens into `content` and `reasoning`; with each, the `top` likeliest.

    `names_ids`: tokens are named by their ids. `control`: control tokens of the answer have entries too.
    """

    def __init__(
        self, fmt: ChatFormat, top: int, *, thinking: bool, names_ids: bool = False, control: bool = False
    ) -> None:
        self._names_ids = names_ids
        self._hidden = frozenset() if control else fmt.control_ids
        self._fmt = fmt
        self._top = top
        self._thinking = thinking
        self._think_end = fmt.think_end()
        self._skip = 0
        self._in_header = False
        self._entries: dict[str, list[LogprobEntry]] = {"content": [], "reasoning": []}

    def feed(self, advance: Advance) -> None:
        """Takes the next tokens, with their entries."""
        for index, (token_id, entry) in enumerate(zip(advance.token_ids, advance.logprobs, strict=False), 1):
            if self._thinking and self._think_end.feed(token_id):
                self._thinking = False
                self._skip = NEWLINES_AFTER_THINKING
            elif not self._is_skipped(token_id) and token_id not in self._hidden:
                self._entries["reasoning" if self._thinking else "content"].append(
                    _entry(self._fmt, self._top, token_id, entry, names_ids=self._names_ids)
                )
            if index in advance.opened:
                self._thinking, self._think_end = True, self._fmt.think_end()
                self._skip = NEWLINES_BEFORE_THINKING
        self._thinking = self._thinking and not advance.closed

    def take(self) -> dict[str, list[LogprobEntry]]:
        """The entries since the last call."""
        entries, self._entries = self._entries, {"content": [], "reasoning": []}
        return entries

    def _is_skipped(self, token_id: int) -> bool:
        if token_id in self._fmt.control_ids:
            starts = token_id in self._fmt.header_starts
            self._in_header = starts or (self._in_header and token_id not in self._fmt.header_ends)
        elif self._in_header:
            return True
        if self._skip:
            text = self._fmt.vocabulary.token_bytes(token_id)
            self._skip = max(0, self._skip - len(text)) if not text.strip(b"\n") else 0
            return not text.strip(b"\n")
        return False


def prompt_entries(
    fmt: ChatFormat,
    top: int,
    token_ids: Sequence[int],
    entries: Sequence[TokenLogprob | None],
    *,
    names_ids: bool = False,
) -> list[LogprobEntry]:
    """The entries of a prompt's tokens; the first has no probability, for nothing stands before it."""
    return [
        _entry(fmt, top, token_id, entry, names_ids=names_ids)
        for token_id, entry in zip(token_ids, entries, strict=True)
    ]


def prompt_places(
    fmt: ChatFormat, top: int, token_ids: Sequence[int], entries: Sequence[TokenLogprob | None]
) -> list[JsonObject | None]:
    """The same as vLLM tells it: by token ids, with ranks. The rank of a token that is not among the `top` is null."""

    def place(token_id: int, entry: TokenLogprob) -> JsonObject:
        likeliest = {other: (logprob, rank) for rank, (other, logprob) in enumerate(entry.top[:top], 1)}
        told = {token_id: likeliest.get(token_id, (entry.logprob, None)), **likeliest}
        return {
            str(other): {
                "logprob": max(logprob, LEAST),
                "rank": rank,
                "decoded_token": _token(fmt, other, None, names_ids=False)["token"],
            }
            for other, (logprob, rank) in told.items()
        }

    pairs = zip(token_ids, entries, strict=True)
    return [None if entry is None else place(token_id, entry) for token_id, entry in pairs]


def _entry(fmt: ChatFormat, top: int, token_id: int, entry: TokenLogprob | None, *, names_ids: bool) -> LogprobEntry:
    if entry is None:
        return {**_token(fmt, token_id, None, names_ids=names_ids), "top_logprobs": []}
    likeliest = [_token(fmt, other, logprob, names_ids=names_ids) for other, logprob in entry.top[:top]]
    return {**_token(fmt, token_id, entry.logprob, names_ids=names_ids), "top_logprobs": likeliest}


def _token(fmt: ChatFormat, token_id: int, logprob: float | None, *, names_ids: bool) -> TokenEntry:
    vocabulary = fmt.vocabulary
    data = vocabulary.token_bytes(token_id) if vocabulary.is_byte_level else None
    text = vocabulary.decode_window([token_id]) if data is None else data.decode(errors="replace")
    return {
        "token": f"token_id:{token_id}" if names_ids else text,
        "logprob": None if logprob is None else max(logprob, LEAST),
        "bytes": list(text.encode() if data is None else data),
    }
