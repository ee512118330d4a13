"""The clients of the soak: those that ask and wait, that leave, that stall, and those that only hold a connection."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.soak.kinds import CHAT, Kind

LAST_EVENTS = ("[DONE]", '"type":"response.completed"', '"type":"response.incomplete"', '"type":"message_stop"')
"""One of these ends a stream that was answered."""
NEAR = 0.2
"""Natural-logarithmic distance below which two tokens are a near-tie: rounding in bfloat16, which depends on what else
is in the batch, may choose either."""

Token = tuple[str, dict[str, float]]
"""A token and the likeliest in its place, by log-probability."""


@dataclass
class Seen:
    """What the clients have seen. `server_errors`: when, which status, and what was asked."""

    outcomes: Counter[str] = field(default_factory=Counter)
    server_errors: list[tuple[float, int, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    near_ties: Counter[str] = field(default_factory=Counter)


class Client:
    """Asks one thing after the other until it is told to stop; `solo` has the greedy answers by kind."""

    def __init__(self, http: httpx.AsyncClient, solo: dict[str, list[Token]], seen: Seen) -> None:
        self._http = http
        self._solo = solo
        self._seen = seen

    async def go_on(self, kinds: list[Kind], rng: random.Random, until: float) -> None:
        """Asks at random until a time."""
        while time.monotonic() < until:
            kind = rng.choice(kinds)
            if kind.streams and rng.random() < 0.15:
                await self._leave(kind, rng)
            else:
                await self.ask(kind)

    async def ask(self, kind: Kind) -> None:
        """One request to its end, and a note of how it ended."""
        began = time.monotonic()
        try:
            status, text = await self._text(kind)
        except httpx.HTTPError as error:
            self._seen.broken.append(f"{kind.name}: {error!r} after {time.monotonic() - began:.1f} s")
            return
        how = outcome(kind, status, text)
        self._seen.outcomes[f"{kind.name}: {how}"] += 1
        if how == "broken":
            self._seen.broken.append(f"{kind.name}: {status} {text[-200:]!r}")
        elif status >= 500 or how == "error event":
            self._seen.server_errors.append((time.monotonic(), status, kind.name))
        elif how == "answer" and kind.greedy:
            self._compare(kind, tokens_of(kind, text))

    async def tokens(self, kind: Kind) -> list[Token]:
        """Those of a greedy request."""
        status, text = await self._text(kind)
        if outcome(kind, status, text) != "answer":
            raise RuntimeError(f"{kind.name} alone: {status} {text}")
        return tokens_of(kind, text)

    async def _text(self, kind: Kind) -> tuple[int, str]:
        response = await self._http.post(kind.path, json=kind.body)
        return response.status_code, response.text

    async def _leave(self, kind: Kind, rng: random.Random) -> None:
        """In the middle of a stream, at once or after reading nothing for a while."""
        self._seen.outcomes["left by the client"] += 1
        try:
            async with self._http.stream("POST", kind.path, json={**kind.body, "max_tokens": 200}) as response:
                await anext(response.aiter_bytes(), None)
                await asyncio.sleep(rng.choice((0.0, 0.1, 3.0)))
        except httpx.HTTPError:
            self._seen.outcomes["left a connection that broke"] += 1

    def _compare(self, kind: Kind, got: list[Token]) -> None:
        alone = self._solo[kind.name]
        if [token for token, _ in got] == [token for token, _ in alone]:
            return
        at = next((n for n, (one, other) in enumerate(zip(got, alone, strict=False)) if one[0] != other[0]), -1)
        (token, _), (other, top) = got[at], alone[at]
        if at >= 0 and top.get(token, -99.0) > top.get(other, 0.0) - NEAR:
            self._seen.near_ties[f"{kind.name}: {other!r} or {token!r} at {at}"] += 1
        else:
            self._seen.different.append(f"{kind.name}: {token!r} at {at}, alone {other!r} of {top}")


def outcome(kind: Kind, status: int, text: str) -> str:
    """How a request ended: answer, refused, error, error event, or broken where it ended in neither."""
    if status != 200:
        if not _error(text):
            return "broken"
        return "refused" if status < 500 else "error"
    if not kind.streams:
        return "answer" if text.startswith(("{", "[")) else "broken"
    last = text.rstrip().rpartition("\n\n")[2]
    if any(mark in last.replace('": "', '":"') for mark in LAST_EVENTS):
        return "answer"
    return "error event" if '"error"' in last else "broken"


def _error(text: str) -> bool:
    try:
        return "error" in json.loads(text)
    except ValueError:
        return False


def tokens_of(kind: Kind, text: str) -> list[Token]:
    """All tokens of a chat answer with log-probabilities, the thinking's first."""
    texts = [line[6:] for line in text.splitlines() if line.startswith("data: {")] if kind.streams else [text]
    bodies = [json.loads(one) for one in texts]
    parts: dict[str, list[Token]] = {"reasoning": [], "content": []}
    for body in bodies:
        for choice in body.get("choices", []):
            for name, entries in parts.items():
                entries += [_token(entry) for entry in (choice.get("logprobs") or {}).get(name) or []]
    return parts["reasoning"] + parts["content"]


def _token(entry: dict[str, Any]) -> Token:
    return entry["token"], {one["token"]: one["logprob"] for one in entry["top_logprobs"]}


async def hold(host: str, port: int, number: int, until: asyncio.Event) -> None:
    """A connection that is idle, or that has sent a part of a head or of a body; another where the server ends it."""
    beginnings = (
        b"",
        b"POST /v1/chat/comp",
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{{".encode(),
    )
    while not until.is_set():
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(beginnings[number % len(beginnings)])
        ends = [asyncio.create_task(reader.read()), asyncio.create_task(until.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        writer.close()
