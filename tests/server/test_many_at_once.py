"""Over real sockets: two thousand requests at once end in an answer or a 503, none in a reset or a 500."""

import asyncio
import json
import resource
from collections import Counter

import pytest

from chat_templates.format import ChatFormat
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import body, served

REQUESTS = 2000
FILES = 2 * REQUESTS + 500  # both ends of each connection are in this process
SETTINGS = Settings(max_waiting=300, max_wait_seconds=60)


@pytest.fixture
def files() -> None:
    """Enough of them for both ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"this machine lets a process have {hard} files open; both ends take {FILES}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))


async def ask(address: tuple[str, int], content: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer, over a connection of its own."""
    reader, writer = await asyncio.open_connection(*address)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
    await writer.drain()
    answer, _, text = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = answer.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), text


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("stream", [False, True])
async def test_all_end_in_an_answer_or_a_503(profile: Profile, fmt: ChatFormat, *, stream: bool) -> None:
    engine = FakeEngine(lambda _: iter([*fmt.encode_text("so"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    modes = ("standard", "reasoning")
    contents = [json.dumps(body(stream=stream, reasoning_mode=mode, max_tokens=64)).encode() for mode in modes]
    async with served(engine, profile, fmt, SETTINGS) as (_, port):
        asked = [ask(("127.0.0.1", port), contents[number % 2]) for number in range(REQUESTS)]
        answers = await asyncio.gather(*asked)
    statuses = Counter(status for status, _, _ in answers)
    assert set(statuses) <= {200, 503}
    assert statuses[200] >= 256
    for status, headers, text in answers:
        if status == 503:
            assert 1 <= int(headers["retry-after"]) <= 60
            assert json.loads(text)["error"]["code"] == "overloaded"
        elif stream:
            assert text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        else:
            assert json.loads(text)["choices"][0]["message"]["content"]
