"""How the soak judges what it sees, without a server."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.soak.clients import Client, Seen, outcome, tokens_of
from tests.soak.kinds import CHAT, Kind, kinds

WHOLE = Kind("whole", CHAT, {"messages": []}, greedy=True)
STREAM = Kind("stream", CHAT, {"messages": [], "stream": True}, greedy=True)
ERROR = json.dumps({"error": {"message": "gone"}})


@pytest.mark.parametrize(
    ("kind", "status", "text", "how"),
    [
        (WHOLE, 200, "{}", "answer"),
        (WHOLE, 200, "", "broken"),
        (WHOLE, 400, ERROR, "refused"),
        (WHOLE, 503, ERROR, "error"),
        (WHOLE, 500, "Internal Server Error", "broken"),
        (STREAM, 200, "data: {}\n\ndata: [DONE]\n\n", "answer"),
        (STREAM, 200, 'event: message_stop\ndata: {"type": "message_stop"}\n\n', "answer"),
        (STREAM, 200, f"data: {{}}\n\ndata: {ERROR}\n\n", "error event"),
        (STREAM, 200, "data: {}\n\n", "broken"),
    ],
)
def test_a_request_ends_in_an_answer_an_error_or_neither(kind: Kind, status: int, text: str, how: str) -> None:
    assert outcome(kind, status, text) == how


def answer(*tokens: str, close: float = -9.0) -> dict[str, Any]:
    """Each with a second token 'B' of that log-probability in its place."""
    top = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": close}]
    entries = [{"token": token, "logprob": -0.1, "top_logprobs": top} for token in tokens]
    return {"choices": [{"logprobs": {"reasoning": entries[:1], "content": entries[1:]}}]}


def test_tokens_of_a_stream_are_those_of_the_whole() -> None:
    whole = json.dumps(answer("A", "B", "A"))
    events = f"data: {json.dumps(answer('A', 'B'))}\n\ndata: {json.dumps(answer('A'))}\n\ndata: [DONE]\n\n"
    assert [token for token, _ in tokens_of(WHOLE, whole)] == ["A", "B", "A"]
    assert len(tokens_of(STREAM, events)) == 3


@pytest.mark.parametrize(("close", "near", "different"), [(-0.2, 1, 0), (-5.0, 0, 1)])
async def test_another_token_is_a_near_tie_or_a_failure(close: float, near: int, different: int) -> None:
    seen = Seen()
    solo = tokens_of(WHOLE, json.dumps(answer("A", "A", "A", close=close)))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer("A", "B", "A")))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        await Client(http, {"whole": solo}, seen).ask(WHOLE)
        await asyncio.sleep(0)
    assert (sum(seen.near_ties.values()), len(seen.different)) == (near, different)


def test_a_path_that_is_not_tried_is_told() -> None:
    with pytest.raises(ValueError, match="/v1/new"):
        kinds([CHAT, "/v1/new"])
