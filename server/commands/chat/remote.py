"""The server that is talked to: its models, its streams, the end of a running thought, and whether it is there."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from server.commands.chat.conversation import Json, Mode, Model

CHAT = "/v1/chat/completions"
UNAVAILABLE = "service_unavailable_error"
"""The type of errors that say nothing against the request itself."""
CONNECT_SECONDS = 5.0
LATER_SECONDS = 1.0
"""After which a server that is not there is asked again."""


class PromptDetails(msgspec.Struct):
    """Of the prompt's tokens."""

    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    """Of the tokens that were generated."""

    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    """The tokens so far."""

    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Delta(msgspec.Struct):
    """A piece of thinking or answer; the server may show the thinking under either name, or both."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct):
    """What a chunk brings."""

    delta: Delta
    finish_reason: str | None = None
    reasoning_finish_reason: str | None = None


class Problem(msgspec.Struct):
    """Why a stream ends early."""

    message: str
    type: str | None = None


class Chunk(msgspec.Struct):
    """An event of a stream, as far as it is shown here."""

    id: str | None = None
    usage: Usage | None = None
    choices: list[Choice] = []
    error: Problem | None = None


class RemoteError(Exception):
    """The server did not answer; the message says why.

    `later`: after so many seconds it may answer the same request. None: it would refuse it again.
    """

    def __init__(self, message: str, later: float | None = None) -> None:
        super().__init__(message)
        self.later = later


class KeyRefusedError(RemoteError):
    """The server wants an API key, or another one."""


class NotTwogearError(RemoteError):
    """Something answers that is no Twogear."""


class Remote:
    """A connection, from `async with` to its end. All methods raise RemoteError."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url = url
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def models(self) -> list[Model]:
        """Those that are served, the default one first."""
        response = await self._request("GET", "/v1/models")
        try:
            return _grouped(response.json()["data"])
        except (ValueError, LookupError, TypeError) as error:
            raise NotTwogearError("it answers, but not as twogear does") from error

    async def stream(self, body: Json) -> AsyncIterator[list[Chunk]]:
        """The chunks of a chat completion; what came while nobody waited for it comes together.

        So what came in one piece has one time, however long it takes to show.
        """
        came: list[Chunk] = []
        news = asyncio.Event()

        async def take() -> None:
            try:
                async for chunk in self._chunks(body):
                    came.append(chunk)
                    news.set()
            finally:
                news.set()

        taking = asyncio.create_task(take())
        try:
            while came or not taking.done():
                await news.wait()
                news.clear()
                together, came[:] = came.copy(), []
                if together:
                    yield together
            taking.result()
        finally:
            taking.cancel()
            await asyncio.wait([taking])

    async def _chunks(self, body: Json) -> AsyncIterator[Chunk]:
        ended = False
        try:
            async with self._http.stream("POST", CHAT, json=body) as response:
                if response.is_error:
                    await response.aread()
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    data = line.removeprefix("data: ")
                    ended = ended or data == "[DONE]"
                    if data and not ended:
                        yield _chunk(data)
        except httpx.HTTPError as error:
            raise _lost(error) from error
        if not ended:
            raise RemoteError("The server ended the stream before the answer was whole.", LATER_SECONDS)

    async def end_thinking(self, completion_id: str) -> None:
        """Closes the thinking of a running completion; the answer follows in its stream."""
        await self._request("POST", f"{CHAT}/{completion_id}/control", json={"action": "end_reasoning"})

    async def trouble(self) -> str | None:
        """Why requests are not taken now; None: they are."""
        try:
            response = await self._http.get("/health")
        except httpx.HTTPError as error:
            return str(_lost(error))
        return None if response.is_success else _reason(response)

    async def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **more)
        except httpx.HTTPError as error:
            raise _lost(error) from error
        if response.is_error:
            raise _refusal(response)
        return response


def _grouped(listed: list[Json]) -> list[Model]:
    """Each model under its own name has its modes from its aliases, `NAME:MODE`. Raises LookupError without any."""
    names = {str(one["id"]) for one in listed}
    modes: dict[str, list[Mode]] = {}
    for one in listed:
        name, _, mode = str(one["id"]).rpartition(":")
        if name in names and mode == one["reasoning_mode"]:
            modes.setdefault(name, []).append(Mode(mode, one.get("kind") != "direct"))
    models = [
        Model(name, tuple(modes[name]), str(one["reasoning_mode"])) for one in listed if (name := one["id"]) in modes
    ]
    if not models:
        raise LookupError("no model has modes")
    return models


def _chunk(data: str) -> Chunk:
    try:
        chunk = msgspec.json.decode(data, type=Chunk)
    except msgspec.DecodeError as error:
        raise RemoteError(f"The server's stream is not one of Twogear's: {error}.") from error
    if chunk.error is not None:
        raise RemoteError(chunk.error.message, LATER_SECONDS if chunk.error.type == UNAVAILABLE else None)
    return chunk


def _refusal(response: httpx.Response) -> RemoteError:
    reason = _reason(response)
    if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return KeyRefusedError(reason)
    if response.status_code in (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT):
        wait = response.headers.get("Retry-After", "")
        return RemoteError(reason, float(wait) if wait.isdigit() else LATER_SECONDS)
    return RemoteError(reason)


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"The server answers {response.status_code} {response.reason_phrase}."


def _lost(error: httpx.HTTPError) -> RemoteError:
    unreachable = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    what = "cannot be reached" if unreachable else "was lost"
    return RemoteError(f"The server {what} ({str(error) or type(error).__name__}).", LATER_SECONDS)
