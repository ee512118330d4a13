"""What the core tells of a request under way, for any API: pieces of its choices, as they come.

The events in a piece are the parser's (`chat_templates.events`). What a choice is in the end stands in its `Choice`.
"""

from typing import NamedTuple, TypedDict

from chat_templates.events import Event

ENTRY_BYTES = 64
"""Of one token with its log-probability, as JSON."""
TOKEN_BYTES = 512
"""What is kept of each place in the text beside that. Both are about what is measured until the response is whole."""


class TokenEntry(TypedDict):
    """One token with its log-probability, None where nothing stands before it; `bytes` is its text in UTF-8."""

    token: str
    logprob: float | None
    bytes: list[int]


class LogprobEntry(TokenEntry):
    """One place in the text: its token, and the likeliest there."""

    top_logprobs: list[TokenEntry]


class Piece(NamedTuple):
    """What some tokens add to the choice of that number; `logprobs` and `token_ids` are None where not asked for.

    `logprobs` has the entries of the answer under `content`, those of the thinking under `reasoning`. `entries`: how
    many log-probabilities are to be told with the piece, those of the prompt with the first.
    """

    choice: int
    events: list[Event]
    logprobs: dict[str, list[LogprobEntry]] | None
    token_ids: list[int] | None
    entries: int = 0


def entry_bytes(entries: int, top: int) -> int:
    """Of log-probabilities, 1 + `top` for each place in the text, that are kept."""
    return entries // (1 + top) * TOKEN_BYTES + entries * ENTRY_BYTES
