"""The load's client against real sockets: closed loops, refusals, broken connections, time limits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from benchmarks.load.drive import Job, Request, drive

USAGE = {"prompt_tokens": 3, "completion_tokens": 5}
Answer = Callable[[asyncio.StreamWriter, dict[str, Any]], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """A server that reads one request and has `answer` write the response."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
            length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
            await answer(writer, orjson.loads(await reader.readexactly(length)))
        except asyncio.IncompleteReadError:
            pass  # given up by the client before it asked
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/chat/completions"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
LAST = b"data: " + orjson.dumps({"choices": [], "usage": USAGE}) + b"\n\ndata: [DONE]\n\n"


async def stream(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    writer.write(STREAM + chunk(EVENT))
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.write(chunk(EVENT[:20]) + chunk(EVENT[20:] + LAST) + b"0\r\n\r\n")


def job(url: str, count: int, streams: int = 1, limit: float = 60) -> Job:
    return Job(url, streams, limit, [Request({"number": number}, thinks=number % 2 == 1) for number in range(count)])


async def test_every_request_is_answered_and_no_more_run_at_once_than_there_are_streams() -> None:
    running, most, seen = 0, 0, []

    async def counted(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        seen.append(body["number"])
        await stream(writer, body)
        running -= 1

    async with server(counted) as url:
        outcome = await drive(job(url, 7, streams=3))
    assert sorted(seen) == list(range(7))
    assert most <= 3
    assert [sample.error for sample in outcome.samples] == [None] * 7
    assert sum(sample.thinks for sample in outcome.samples) == 3
    assert {(sample.completion_tokens, sample.events) for sample in outcome.samples} == {(5, 2)}
    for sample in outcome.samples:
        assert sample.first is not None
        assert 0 <= sample.started < sample.first < sample.ended <= outcome.seconds


async def refuse(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 9\r\n\r\nbad field")


async def break_off(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    writer.write(STREAM + chunk(EVENT))


async def babble(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    writer.write(b"SSH-2.0-server\r\n")


@pytest.mark.parametrize(
    ("answer", "told"),
    [(refuse, "status 400: bad field"), (break_off, "connection was lost"), (babble, "no HTTP")],
)
async def test_what_is_no_answer_is_an_error_of_its_request(answer: Answer, told: str) -> None:
    async with server(answer) as url:
        (sample,) = (await drive(job(url, 1))).samples
    assert sample.error is not None
    assert told in sample.error


async def test_nobody_listens() -> None:
    async with server(stream) as url:
        pass
    (sample,) = (await drive(job(url, 1))).samples
    assert sample.error is not None
    assert "no connection" in sample.error


async def test_what_takes_too_long_is_given_up() -> None:
    given_up = asyncio.Event()

    async def hang(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writer.write(STREAM + chunk(EVENT))
        await given_up.wait()

    async with server(hang) as url:
        outcome = await drive(job(url, 2, limit=0.2))
        given_up.set()
    assert all("not answered 0.2 s" in (sample.error or "") for sample in outcome.samples)


async def test_the_key_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOGEAR_API_KEY", "sk-twogear-mine")
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await stream(writer, {})
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        await drive(job(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", 1))
    assert b"\r\nAuthorization: Bearer sk-twogear-mine\r\n" in heads[0]
