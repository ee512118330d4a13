"""Several engines behind one front end: what is told of them, where requests go, what the loss of one costs."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from chat_templates.format import ChatFormat
from engine.defaults import Machine
from engine.messages import Adapter, Delta, Generate, PageGroup, Sampling, Stats
from server import cli
from server.cli_errors import UsageError
from server.engine_client import EngineLost, EngineStatus, EngineUnavailable, RequestFailed
from server.replicas import check_heads, environments
from server.replicated_engine_client import ReplicatedEngineClient
from server.routing import BLOCK
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client, always, body

EOS = 2
LOADING = EngineStatus("loading", "warming up", 0.9)
CPU = Machine("cpu", cpus=(0, 1, 4, 5), available_memory=16 << 30)
GPU = Machine("gpu", cpus=(0, 1), available_memory=16 << 30)


class LostEngine(FakeEngine):
    """Ends with its third delta."""

    async def generate(self, request: Generate, kind: str = "") -> AsyncGenerator[Delta, None]:
        number = 0
        async for delta in super().generate(request, kind):
            number += 1
            if number == 3:
                self.status = EngineStatus("lost", "the engine died", 0.0)
                raise EngineLost("the engine died", 1, frozenset(self.under_way))
            yield delta


def engines(number: int = 2, **options: Any) -> tuple[list[FakeEngine], ReplicatedEngineClient]:
    made = [FakeEngine(always([7, 8, 9, EOS]), (EOS,), **options) for _ in range(number)]
    return made, ReplicatedEngineClient(made)


def request(name: str, prompt: list[int] | None = None, **fields: Any) -> Generate:
    return Generate(name, prompt or [3, 4, 5], Sampling(max_tokens=100), **fields)


async def drawn(client: ReplicatedEngineClient, one: Generate) -> list[int]:
    return [token_id async for delta in client.generate(one) for token_id in delta.token_ids]


def test_what_is_told_is_summed() -> None:
    (one, other), client = engines(max_num_seqs=16)
    one.stats = Stats(2, 1, (PageGroup("global", 32, 1, 2, 3),), 4, (1, 2), 5)
    assert client.stats == one.stats
    other.stats = Stats(3, 0, (PageGroup("global", 32, 10, 20, 30),), 1, (0, 7), 8)
    assert client.stats == Stats(5, 1, (PageGroup("global", 32, 11, 22, 33),), 5, (1, 9), 13)
    one.restarts, other.restarts = {"hang": 1}, {"hang": 2, "killed": 1}
    assert client.restarts == {"hang": 3, "killed": 1}
    assert client.ready is not None
    assert client.ready.max_num_seqs == 32
    assert client.ready.page_groups[0] == PageGroup("sliding", 32, 2, 4, 6)


def test_it_is_ready_as_soon_as_one_is() -> None:
    (one, other), client = engines(max_num_seqs=16)
    one.status = other.status = LOADING._replace(fraction=0.1)
    one.ready = other.ready = None
    assert (client.status, client.ready) == (one.status, None)
    other.status = LOADING
    assert client.status == LOADING
    one.status, one.ready = EngineStatus("ready", "", 1.0), engines()[0][0].ready
    assert client.status.state == "ready"
    assert client.ready is not None
    assert client.ready.max_num_seqs == 256
    one.status = EngineStatus("lost", "no such file", 0.0, final=True)
    assert client.status.final


async def test_a_conversation_stays_where_its_pages_are() -> None:
    made, client = engines(3)
    prompts = [[talk + 10] * (BLOCK * 3) for talk in range(6)]
    for turn in range(10):
        for talk, prompt in enumerate(prompts):
            prompt += [*await drawn(client, request(f"{talk}-{turn}", prompt)), *[turn + 3] * BLOCK]
    talks = [{one.prompt_ids[0] for one in engine.seen} for engine in made]
    assert [len(one) for one in talks] == [2, 2, 2]
    assert [len(engine.seen) for engine in made] == [20, 20, 20]


async def test_the_loss_of_one_ends_what_runs_there_alone() -> None:
    one, other = LostEngine(always([7] * 50), (EOS,)), FakeEngine(always([7] * 50), (EOS,))
    client = ReplicatedEngineClient([one, other])
    both = [drawn(client, request(name)) for name in ("first", "second")]
    lost, whole = await asyncio.gather(*both, return_exceptions=True)
    assert isinstance(lost, EngineLost)
    assert whole == [7] * 50
    assert client.status.state == "ready"
    assert client.ready is not None
    assert client.ready.max_num_seqs == 256
    assert await drawn(client, request("third")) == [7] * 50
    assert len(other.seen) == 2
    other.status = LOADING
    with pytest.raises(EngineUnavailable, match="loading: warming up"):
        client.generate(request("fourth"))


async def test_what_is_asked_of_a_request_reaches_its_engine() -> None:
    (one, other), client = engines()
    streams = [client.generate(request(name)) for name in ("first", "second")]
    for stream in streams:
        await anext(stream)
    client.prioritize("second", 5)
    assert (one.prioritized, other.prioritized) == ([], [("second", 5)])
    assert client.is_running("first")
    client.abort("first")
    assert not client.is_running("first")
    assert client.is_running("second")
    await streams[1].aclose()
    assert other.aborted == ["second"]
    assert not client.is_running("second")


async def test_adapters_are_everywhere() -> None:
    made, client = engines(3)
    made[2].status = LOADING
    adapter = Adapter(1, "tuned", "/tuned")
    await client.load_adapter(adapter)
    assert [engine.adapters for engine in made] == [{1: adapter}, {1: adapter}, {}]
    client.unload_adapter(1)
    assert not any(engine.adapters for engine in made)
    made[1].refuse_adapters = "no such folder"
    with pytest.raises(RequestFailed, match="no such folder"):
        await client.load_adapter(adapter)


async def test_requests_and_metrics_over_http(client: Client, fmt: ChatFormat) -> None:
    ids = [*fmt.encode_text("It is 4."), fmt.end_of_turn_id]
    made = [FakeEngine(always(ids), (fmt.end_of_turn_id,), max_num_seqs=16) for _ in range(2)]
    async with client(ReplicatedEngineClient(made)) as http:
        answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body(n=3)) for _ in range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert {choice["message"]["content"] for answer in answers for choice in answer.json()["choices"]} == {"It is 4."}
    assert sorted(len(engine.seen) for engine in made) == [12, 12]


def test_each_has_its_part_of_the_machine() -> None:
    assert environments(1, [], CPU) == [{}]
    assert environments(2, [], CPU) == [{"TWOGEAR_REPLICA": "1/2"}, {"TWOGEAR_REPLICA": "2/2"}]
    parts = [CPU.part(one["TWOGEAR_REPLICA"]) for one in environments(3, [], CPU)]
    assert [part.cpus for part in parts] == [(0,), (1,), (4, 5)]
    assert {part.available_memory for part in parts} == {(16 << 30) // 3}


def test_each_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    made = environments(2, ["--tensor-parallel-size", "2"], GPU)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in made] == ["4,5", "6,7"]


@pytest.mark.parametrize(
    ("replicas", "options", "machine", "words"),
    [
        (5, [], CPU, "--data-parallel-size 5: each engine needs a core, and this server may use 4 cores; at most 4"),
        (3, ["-tp", "2"], CPU, "each engine needs 2 cores, and this server may use 4 cores; at most 2 would fit"),
        (2, [], GPU, "each engine needs a GPU, and this server may use 1 GPU; at most 1 would fit"),
    ],
)
def test_there_must_be_room(
    replicas: int, options: list[str], machine: Machine, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UsageError) as caught:
        environments(replicas, options, machine)
    assert words in str(caught.value)


@pytest.mark.parametrize("config", [{"num_attention_heads": 6}, {"text_config": {"num_attention_heads": 6}}])
def test_ranks_must_divide_the_heads(config: dict[str, Any]) -> None:
    check_heads(config, ["--tensor-parallel-size", "3"])
    check_heads({}, ["--tensor-parallel-size", "4"])
    with pytest.raises(UsageError) as caught:
        check_heads(config, ["--tensor-parallel-size=4"])
    told = "--tensor-parallel-size 4 does not divide the model's 6 attention heads; these fit: 1, 2, 3, 6."
    assert str(caught.value) == told


def test_ranks_must_divide_the_key_value_heads_or_be_a_multiple_of_them() -> None:
    config = {"num_attention_heads": 12, "num_key_value_heads": 4}
    for size in (1, 2, 4, 12):
        check_heads(config, ["--tensor-parallel-size", str(size)])
    told = "--tensor-parallel-size 3 does not divide the model's 4 key-value heads; these fit: 1, 2, 4, 12."
    for size in (3, 6):
        with pytest.raises(UsageError) as caught:
            check_heads(config, ["--tensor-parallel-size", str(size)])
        assert str(caught.value) == told.replace("size 3", f"size {size}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--", "--tensor-parallel-size", "4"], "4 does not divide the model's 6 attention heads"),
        (["--", "--tensor-parallel-size", "3"], "3 does not divide the model's 2 key-value heads"),
        (["--data-parallel-size", "4096"], "--data-parallel-size 4096: each engine needs a core"),
    ],
)
def test_what_does_not_fit_is_refused_at_start_in_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "--port", "0", *options]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if words in line] == told
    assert len(told) == 1


def test_a_port_of_another_server_is_refused_with_several_front_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel would share it with any that lets it."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        assert cli.main(["serve", "--port", str(port), "--api-server-count", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"port {port} on 127.0.0.1 is taken; choose another with --port" in line


def test_stats_of_engines_that_have_told_nothing() -> None:
    (one, _), client = engines()
    assert client.stats is None
    one.stats = Stats(1, 0, ())
    assert client.stats == msgspec.structs.replace(one.stats)
