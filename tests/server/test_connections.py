"""What a client does with its connection, and with how many of them, is bounded in size, time and number."""

import asyncio
import json
import re
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress

import pytest
import uvloop

from chat_templates.format import ChatFormat
from server.draining import DrainingServer
from server.http.connections import SPARE_FILES, Connections
from server.http.protocol import MAX_AHEAD, MAX_HEAD
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always, body, served

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
IMPATIENT = Settings(header_timeout=0.4, body_timeout=0.6)

Served = tuple[DrainingServer, int]


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("so"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


@pytest.fixture
async def server(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> AsyncIterator[Served]:
    """With the times that clients have by default, which a busy machine does not use up."""
    async with served(engine, profile, fmt, Settings(max_connections=8)) as one:
        yield one


@pytest.fixture
async def impatient(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> AsyncIterator[Served]:
    """With times so short that tests can wait for their end."""
    async with served(engine, profile, fmt, IMPATIENT) as one:
        yield one


async def exchange(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """All that the server says to the pieces until it ends the connection; the last is sent again and again."""

    async def send() -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        while pause:
            writer.write(pieces[-1])
            await asyncio.sleep(pause)

    async with asyncio.timeout(240):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sending = asyncio.create_task(send())
        said = b""
        try:
            with suppress(ConnectionError):
                while part := await reader.read(1 << 16):
                    said += part
            return said
        finally:
            sending.cancel()
            writer.close()


def chat_body() -> bytes:
    return json.dumps(body()).encode()


@pytest.mark.parametrize(
    "head", [b"X: " + b"a" * 70_000, b"X: a\r\n" * 1000, b"X: " + b"a" * MAX_HEAD], ids=["value", "lines", "nearly"]
)
async def test_a_large_head_is_refused_however_it_comes(server: Served, head: bytes) -> None:
    answer = await exchange(server[1], CHAT + head + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_head_that_does_not_end(impatient: Served) -> None:
    assert (await exchange(impatient[1], CHAT)).startswith(b"HTTP/1.1 408 ")
    assert (await exchange(impatient[1], CHAT, b"X: a\r\n", pause=0.05)).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
async def test_a_connection_without_a_request_is_closed(impatient: Served, sent: bytes) -> None:
    assert await exchange(impatient[1], sent, pause=0.05) == b""


async def test_empty_lines_do_not_keep_an_idle_connection(impatient: Served) -> None:
    assert (await exchange(impatient[1], HEALTH, b"\r\n", pause=0.05)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("field", "piece"), [(b"Content-Length: 1000", b" "), (b"Transfer-Encoding: chunked", b"1\r\n \r\n")]
)
async def test_a_body_that_dribbles(impatient: Served, field: bytes, piece: bytes) -> None:
    answer = await exchange(impatient[1], CHAT + field + b"\r\n\r\n", piece, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("pause", [0.0, 0.05])
async def test_a_body_cut_off_is_no_failure_of_ours(
    impatient: Served, caplog: pytest.LogCaptureFixture, pause: float
) -> None:
    """Whether the client leaves or is too slow: the log, which anybody could fill, has nothing of it."""
    head = CHAT + b"Content-Length: 1000\r\n\r\n"
    if pause:
        await exchange(impatient[1], head, b" ", pause=pause)
    else:
        _, writer = await asyncio.open_connection("127.0.0.1", impatient[1])
        writer.write(head)
        await asyncio.sleep(0.1)
        writer.close()
    while impatient[0].server_state.tasks:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not caplog.records


async def test_a_body_that_nobody_wants_ends(impatient: Served) -> None:
    """It is refused after its head; a client that goes on sending has its connection closed."""
    answer = await exchange(impatient[1], CHAT + b"Content-Length: 1000000000\r\n\r\n", b" " * 100, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_is_refused_while_reading_is_paused_ends(server: Served) -> None:
    """So much of it comes with what is wrong in it that reading has been paused by then. It was, for ever: a client
    that sent on kept its connection until it gave up.
    """
    running, port = server
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setblocking(False)
        sent = CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + b"11170\r\n" + b" " * 0x11170 + b"\r\nno number\r\n"
        while not running.server_state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        assert connection.send(sent) == len(sent)  # at once: the loop turns only after it
        async with asyncio.timeout(60):
            while running.server_state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert connection.recv(12) == b"HTTP/1.1 400"


async def test_chunks_may_not_be_mostly_framing(server: Served) -> None:
    chunk = b"1;" + b"a" * 1000 + b"\r\n \r\n"
    answer = await exchange(server[1], CHAT + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 1000)
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_what_follows_a_body_in_chunks_is_dropped(server: Served) -> None:
    content = chat_body()
    chunks = b"%x\r\n" % len(content) + content + b"\r\n0\r\nContent-Type: text/html\r\nX: y\r\n\r\n"
    answer = await exchange(server[1], CHAT + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"Something/1"])
async def test_a_wish_for_another_protocol_is_ignored(server: Served, upgrade: bytes, chunked: bool) -> None:
    """Java's HttpClient asks for h2c with every first request."""
    content = chat_body()
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + upgrade + b"\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    if chunked:
        sent = CHAT + wish + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(content) + content + b"\r\n0\r\n\r\n"
    else:
        sent = CHAT + wish + b"Content-Length: %d\r\n\r\n" % len(content) + content
    last = CHAT + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    for pieces in ([sent + sent + last], [sent[: len(CHAT) + 20], sent[len(CHAT) + 20 :] + sent + last]):
        answer = await exchange(server[1], *pieces)
        assert answer.count(b"HTTP/1.1 200 OK") == 3, answer
        assert answer.count(b'"finish_reason":"stop"') == 3


async def test_a_good_request_after_bad_ones_on_the_same_connection(server: Served) -> None:
    """Also where all are sent ahead: each has its own answer, in their order."""
    content = chat_body()
    good = CHAT + b"Content-Length: %d\r\n\r\n" % len(content) + content
    bad = CHAT + b"Content-Length: 1\r\n\r\n{"
    absent = b"GET /v1/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"
    compressed = good.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n", 1)
    last = good.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    answer = await exchange(server[1], good + bad + good + absent + compressed + last)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200", b"400", b"200", b"404", b"415", b"200"]
    assert answer.count(b'"finish_reason":"stop"') == 3


async def test_the_older_http_and_a_client_that_waits_for_leave(server: Served) -> None:
    """As `curl -0` and `curl` with a long body send it."""
    content = chat_body()
    old = CHAT.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Content-Length: %d\r\n\r\n" % len(content) + content
    answer = await exchange(server[1], old)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"finish_reason":"stop"' in answer
    head = CHAT + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(content)
    reader, writer = await asyncio.open_connection("127.0.0.1", server[1])
    try:
        async with asyncio.timeout(60):
            writer.write(head)
            assert (await reader.readline()).startswith(b"HTTP/1.1 100 ")
            writer.write(content)
            answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    assert b"HTTP/1.1 200 " in answer


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: +5\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"X: a\r\n b\r\n",
        b"X: a\nY: b\r\n",
        b"X: a\0\r\n",
    ],
)
async def test_a_head_that_can_be_read_in_two_ways_is_refused(server: Served, fields: bytes) -> None:
    """Whoever stood before us may have read it in the other one."""
    answer = await exchange(server[1], CHAT + fields + b"\r\n0\r\n\r\n" + LAST)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"400"]


async def test_a_request_of_two_hosts_is_refused(server: Served) -> None:
    """Whoever stood before us may have heeded the other one."""
    twice = LAST.replace(b"Host: localhost\r\n", b"Host: localhost\r\nHost: evil.example\r\n")
    answer = await exchange(server[1], twice)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"A request has one Host." in answer


async def test_this_is_no_proxy(server: Served) -> None:
    assert (await exchange(server[1], b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_requests_sent_ahead_are_answered_up_to_a_number(server: Served) -> None:
    assert (await exchange(server[1], HEALTH * MAX_AHEAD + LAST)).count(b"HTTP/1.1 200 OK") == MAX_AHEAD + 1
    assert (await exchange(server[1], HEALTH * 10_000)).count(b"HTTP/1.1 200 OK") <= MAX_AHEAD


def test_who_sends_ahead_and_leaves_is_missed(
    profile: Profile, fmt: ChatFormat, caplog: pytest.LogCaptureFixture
) -> None:
    """On a real server's loop, which minds what is written to a connection that is gone."""
    uvloop.run(leaving_ahead(profile, fmt))
    assert not caplog.records


async def leaving_ahead(profile: Profile, fmt: ChatFormat) -> None:
    engine = FakeEngine(always(fmt.encode_text("a") * 3000), (fmt.end_of_turn_id,), step=lambda: asyncio.sleep(0.001))
    content = json.dumps(body(stream=True, max_tokens=3000)).encode()
    asked = CHAT + b"Content-Length: %d\r\n\r\n" % len(content) + content
    for sent in (2 * asked, 2 * asked + b"no HTTP\r\n\r\n", (MAX_AHEAD + 2) * asked):
        engine.aborted.clear()
        async with served(engine, profile, fmt, Settings()) as (server, port):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(sent)
                while not server.server_state.total_requests and not server.server_state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                for _ in range(100):
                    await asyncio.sleep(0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            while server.server_state.tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(engine.aborted) == len(engine.seen)
        engine.seen.clear()


async def test_one_connection_too_many_is_told_so(server: Served) -> None:
    with ExitStack() as held:
        for _ in range(8):
            held.enter_context(socket.create_connection(("127.0.0.1", server[1])))
        while len(server[0].server_state.connections) < 8:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await exchange(server[1])).startswith(b"HTTP/1.1 503 ")
    while server[0].server_state.connections:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert (await exchange(server[1], LAST)).startswith(b"HTTP/1.1 200 ")


async def test_an_answer_that_is_not_read_is_given_up(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    content = json.dumps({"prompt": "7 " * 500_000}).encode()
    settings = Settings(stall_seconds=0.5)
    async with served(engine, profile, fmt, settings) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, ("127.0.0.1", server[1]))
            head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += b"Content-Length: %d\r\n\r\n" % len(content)
            await loop.sock_sendall(connection, head + content)
            async with asyncio.timeout(240):
                while not server[0].server_state.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                while server[0].server_state.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            got = 0
            with suppress(ConnectionResetError):
                while part := await loop.sock_recv(connection, 1 << 20):
                    got += len(part)
    assert 0 < got < 3_000_000  # of 3.5 million bytes


def test_one_address_has_its_share() -> None:
    limits = Connections(Settings(max_connections=10, max_connections_per_address=2))
    assert [limits.open("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert [limits.open(f"2001:db8:0:1::{number}") for number in (1, 2, 3)] == [True, True, False]
    assert limits.open("2001:db8:0:2::1")
    assert limits.open("::ffff:192.0.2.2")
    assert not limits.are_full
    limits.close("192.0.2.1")
    limits.close("192.0.2.1")
    assert limits.open("192.0.2.1")
    assert [limits.open(address) for address in ("127.0.0.1", None, "::1", "192.0.2.3")] == [True, True, True, False]
    assert limits.are_full


FEW_FILES = 400
SERVE = f"""
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW_FILES}, {FEW_FILES}))
from chat_templates.format import ChatFormat
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import served

async def main():
    fmt = ChatFormat.from_folder(EMBEDDED_MODEL)
    profile = load_profile(PROFILE_FOLDER / "exaone4.toml")
    async with served(FakeEngine(lambda _: iter([1]), (1,)), profile, fmt, Settings()) as (_, port):
        print(port, flush=True)
        await asyncio.to_thread(sys.stdin.read)

import uvloop
uvloop.run(main())
"""


def test_more_connections_than_files_do_not_end_the_server() -> None:
    """Where the system has no file left for a connection, the event loop gives up the whole listener."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with ExitStack() as held:
            for _ in range(3 * FEW_FILES):
                connection = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
                connection.sendall(HEALTH[:20])
        assert asyncio.run(exchange(port, LAST)).startswith(b"HTTP/1.1 200 ")
        process.communicate("")


def test_there_are_files_left() -> None:
    limits = Connections(Settings(max_connections=1 << 30))
    assert limits.most + limits.backlog + SPARE_FILES <= 1 << 17
