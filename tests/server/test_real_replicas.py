"""Two real engines behind one front end: answers as of one, pages found again, and the loss of one of them."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.real_server import START_SECONDS, RealServer

pytestmark = pytest.mark.engine
CHAT = "/v1/chat/completions"
BOTH_SERVE = [rf'twogear_replica_ready{{engine="{number}"}} 1\.0' for number in range(2)]
BOTH_WORK = [rf'vllm:num_requests_running{{engine="{number}",.*}} [1-9].*' for number in range(2)]
BOTH_IDLE = [rf'vllm:num_requests_running{{engine="{number}",.*}} 0\.0' for number in range(2)]
CROWDED = "import sys; from server import cli, replicas; replicas._check = lambda *_: None; sys.exit(cli.main())"
"""`twogear` on fewer cores than its engines have ranks, which is refused otherwise."""
MODES = ("standard", "reasoning")
QUESTIONS = [f"What is {n} + {n * 7 % 90 + 10}?" for n in range(10, 26)]


@pytest.fixture(scope="module")
def replicas() -> Iterator[RealServer]:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two engines need two cores")
    with RealServer("--data-parallel-size", "2", "--drain-seconds", "240", "--", "--max-model-len", "4096") as server:
        until(server, *BOTH_SERVE)
        yield server


def engines(server: RealServer) -> list[int]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in children}
    return [pid for pid, line in lines.items() if line[1:3] == ["-m", "engine"]]


def until(server: RealServer, *patterns: str) -> None:
    """Until /metrics has a line for each of these. Raises TimeoutError with the last of /metrics and of the server."""
    end = time.monotonic() + START_SECONDS
    while True:
        told = httpx.get(f"{server.url}/metrics", timeout=60).text
        if all(re.search(f"^{one}$", told, re.MULTILINE) for one in patterns):
            return
        if time.monotonic() > end:
            raise TimeoutError("\n".join([f"never all of {patterns}; last:", told, *server.output]))
        time.sleep(0.05)


async def ask(http: httpx.AsyncClient, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    response = await http.post(CHAT, json={"messages": messages, "temperature": 0, "max_tokens": 60, **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def think(http: httpx.AsyncClient, text: str, tokens: int) -> int:
    """The status of a request that draws so many."""
    fields = {"reasoning_mode": "reasoning", "ignore_eos": True, "max_tokens": tokens}
    return (await http.post(CHAT, json={"messages": [user(text)], **fields})).status_code


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def test_greedy_answers_are_those_of_one_engine(replicas: RealServer, real_server: RealServer) -> None:
    answers = []
    for url in (replicas.url, real_server.url):
        async with httpx.AsyncClient(base_url=url, timeout=START_SECONDS) as http:
            asked = [ask(http, [user(one)], reasoning_mode=mode) for one in QUESTIONS for mode in MODES]
            answers.append([one["choices"][0]["message"] for one in await asyncio.gather(*asked)])
    assert answers[0] == answers[1]


async def test_a_conversation_finds_its_pages(replicas: RealServer) -> None:
    async with httpx.AsyncClient(base_url=replicas.url, timeout=START_SECONDS) as http:
        talks = [[user(f"{talk} {one} " * 8)] for talk, one in enumerate(QUESTIONS[:4])]
        for turn in range(10):
            for messages in talks:
                answer = await ask(http, messages, max_tokens=16)
                usage = answer["usage"]
                if turn:
                    assert usage["prompt_tokens_details"]["cached_tokens"] >= usage["prompt_tokens"] - 96
                messages += [
                    {"role": "assistant", "content": answer["choices"][0]["message"]["content"]},
                    user("Go on."),
                ]
    await asyncio.to_thread(until, replicas, *BOTH_IDLE)


async def test_the_loss_of_one_is_not_that_of_the_other(replicas: RealServer) -> None:
    async with httpx.AsyncClient(base_url=replicas.url, timeout=START_SECONDS) as http:
        running = [asyncio.create_task(think(http, one, 2000)) for one in QUESTIONS[:8]]
        await asyncio.to_thread(until, replicas, *BOTH_WORK)
        os.kill(engines(replicas)[0], signal.SIGKILL)
        ended = [await one for one in running]
        assert sorted(set(ended)) == [200, 503]
        assert (await http.get("/health")).status_code == 200
        assert await ask(http, [user(QUESTIONS[0])])
    await asyncio.to_thread(until, replicas, *BOTH_SERVE)
    log = "\n".join(replicas.output)
    assert re.search(r"Engine [01] was lost\. Cause: killed", log)
    assert re.search(r"Engine [01] is back", log)


async def test_a_reload_keeps_and_a_drain_awaits_what_runs_on_both(replicas: RealServer) -> None:
    """The last of this module: the server has ended."""
    async with httpx.AsyncClient(base_url=replicas.url, timeout=START_SECONDS) as http:
        running = [asyncio.create_task(think(http, one, 400)) for one in QUESTIONS[:8]]
        await asyncio.to_thread(until, replicas, *BOTH_WORK)
        replicas.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(until, replicas, *BOTH_WORK)
        replicas.process.send_signal(signal.SIGTERM)
        assert [await one for one in running] == [200] * 8
        assert await asyncio.to_thread(replicas.process.wait, START_SECONDS) == 0
    assert "loaded anew" in "\n".join(replicas.output)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("spread", ["--tensor-parallel-size", "--pipeline-parallel-size"])
async def test_each_may_have_ranks(spread: str, real_server: RealServer) -> None:
    """Two engines of two workers each, in turns on the cores that there are."""
    command = [sys.executable, "-c", CROWDED]
    options = ["--data-parallel-size", "2", "--", spread, "2", "--max-model-len", "4096"]
    with RealServer(*options, command=command, patience=2 * START_SECONDS) as server:
        until(server, *BOTH_SERVE)
        answers = []
        for url in (server.url, real_server.url):
            async with httpx.AsyncClient(base_url=url, timeout=2 * START_SECONDS) as http:
                asked = [await ask(http, [user("What is 17 + 25?")], reasoning_mode=mode) for mode in MODES]
                answers.append([one["choices"][0]["message"] for one in asked])
        assert answers[0] == answers[1]
        async with httpx.AsyncClient(base_url=server.url, timeout=2 * START_SECONDS) as http:
            running = [asyncio.create_task(think(http, one, 100)) for one in QUESTIONS[:4]]
            await asyncio.to_thread(until, server, *BOTH_WORK)
            assert [await one for one in running] == [200] * 4
