"""A running server as the evaluations see it: questions in, answers and token counts out, many at once.

HTTP only; what is asked and how answers score is the evaluations' own.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from server.access.keys import client_headers
from server.cli_errors import UsageError

_TIMEOUT_SECONDS = 3600.0  # eight prompts of 131,072 tokens, one after the other on a CPU
MOST_KEPT = 50
"""Of a result's outcomes."""
T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """What came back for a question; counts are in tokens. `token_ids` where the question had `return_token_ids`."""

    answer: str
    reasoning: str
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    reasoning_finish_reason: str | None
    token_ids: tuple[int, ...] = ()
    trial_tokens: int = 0
    """Of answers that the server tried along the thought."""


class Server:
    """A server behind `client`; at most `at_once` questions are under way."""

    def __init__(self, client: httpx.AsyncClient, at_once: int) -> None:
        self._client = client
        self._gate = asyncio.Semaphore(at_once)

    async def version(self) -> dict[str, Any]:
        """The versions that `/version` tells."""
        return self._checked(await self._client.get("/version"))

    async def modes(self) -> dict[str, str]:
        """The server's modes by their names, in its order, with the kind of each: `direct`, `thinking`, `auto`.

        Raises UsageError where the server is none of ours.
        """
        listed = self._checked(await self._client.get("/v1/models"))["data"]
        try:
            return {str(model["reasoning_mode"]): str(model["kind"]) for model in listed[1:]}
        except KeyError as error:
            raise UsageError("the server lists no modes; it has to be `twogear serve`") from error

    async def model(self) -> str:
        """The name that the model is served under."""
        return str(self._checked(await self._client.get("/v1/models"))["data"][0]["id"])

    async def weights(self) -> str:
        """In how many bits the model's weights are, as the server tells it."""
        return str(self._checked(await self._client.get("/v1/models"))["data"][0]["weights"])

    async def mode_of_kind(self, kind: str) -> str:
        """The first of the server's modes of that kind. Raises UsageError where it has none."""
        found = [name for name, its_kind in (await self.modes()).items() if its_kind == kind]
        if not found:
            raise UsageError(f"the server has no mode of kind {kind}")
        return found[0]

    async def ask(self, question: str, **fields: Any) -> Reply:
        """One question as a chat completion with `fields` in its body. Raises UsageError when the server refuses."""
        reply = await self.complete({"messages": [{"role": "user", "content": question}], **fields})
        choice, usage = reply["choices"][0], reply["usage"]
        return Reply(
            answer=choice["message"]["content"] or "",
            reasoning=choice["message"].get("reasoning_content") or choice["message"].get("reasoning") or "",
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            reasoning_tokens=usage["completion_tokens_details"]["reasoning_tokens"],
            reasoning_finish_reason=choice.get("reasoning_finish_reason"),
            token_ids=tuple(choice.get("token_ids", ())),
            trial_tokens=usage["completion_tokens_details"].get("trial_tokens", 0),
        )

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole chat completion, as OpenAI has it. Raises UsageError when the server refuses."""
        async with self._gate:
            return self._checked(await self._client.post("/v1/chat/completions", json=body))

    async def count_tokens(self, question: str, mode: str) -> int:
        """The length of the prompt that the question becomes in `mode`."""
        body = {"messages": [{"role": "user", "content": question}], "reasoning_mode": mode}
        async with self._gate:
            return int(self._checked(await self._client.post("/tokenize", json=body))["count"])

    async def spelt_out(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, control tokens among them."""
        async with self._gate:
            reply = self._checked(await self._client.post("/detokenize", json={"tokens": token_ids}))
        return str(reply["prompt"])

    async def context(self) -> int:
        """The most tokens of prompt and answer together."""
        return int(self._checked(await self._client.post("/tokenize", json={"prompt": ""}))["max_model_len"])

    @staticmethod
    def _checked(response: httpx.Response) -> dict[str, Any]:
        if response.status_code != 200:
            raise UsageError(f"the server answered {response.status_code}: {response.text[:300]}")
        return dict(response.json())


def with_server(url: str, at_once: int, work: Callable[[Server], Awaitable[T]]) -> T:
    """Runs `work` on the server at `url`. Raises UsageError when nobody answers there."""

    async def connected() -> T:
        limits = httpx.Limits(max_connections=at_once)
        headers = client_headers()
        async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS, limits=limits, headers=headers) as client:
            return await work(Server(client, at_once))

    try:
        return asyncio.run(connected())
    except httpx.TransportError as error:
        raise UsageError(f"no server answers at {url} ({error}); start one with `twogear serve`") from error


async def together(title: str, work: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order, with a progress bar on a terminal; the first error ends the others."""
    jobs = list(work)
    with Progress(disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(title, total=len(jobs))

        async def counted(job: Awaitable[T]) -> T:
            result = await job
            progress.advance(bar)
            return result

        failed: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(counted(job)) for job in jobs]
        except* (UsageError, httpx.TransportError) as errors:
            failed = errors.exceptions[0]  # raised in here it would come as a group before Python 3.11.4
        if failed is not None:
            raise failed
    return [task.result() for task in tasks]


def sampled(outcomes: Sequence[T], is_right: Callable[[T], bool], most: int = MOST_KEPT) -> list[T]:
    """At most `most` outcomes for a result's file, in their order: wrong ones and right ones alike, spread evenly.

    Where there are fewer than half of `most` of one kind, all of them are kept, and more of the other kind.
    """
    kinds: dict[bool, list[int]] = {False: [], True: []}
    for index, outcome in enumerate(outcomes):
        kinds[is_right(outcome)].append(index)
    wrong = _spread(kinds[False], max(most // 2, most - len(kinds[True])))
    right = _spread(kinds[True], most - len(wrong))
    return [outcomes[index] for index in sorted([*wrong, *right])]


def _spread(indices: Sequence[int], most: int) -> Sequence[int]:
    """All of them, or `most` at even distances."""
    return indices if len(indices) <= most else [indices[turn * len(indices) // most] for turn in range(most)]


def result_head(what: str, options: str, version: dict[str, Any]) -> dict[str, Any]:
    """The first fields of every result: what was measured, when, of which server, and the command to repeat it."""
    return {
        "what": f"eval {what}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"twogear eval {what} {options}",
        "server": version,
    }


def show_result(result: dict[str, Any], table: Table, path: Path | None) -> None:
    """Prints the table, whole also where it is narrow, and writes the result where a path is given."""
    for column in table.columns:
        column.overflow = "fold"
    Console().print(table)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {path}")
