"""Requests through the client to a real engine: tokens, stops, aborts, pages, refusals."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from msgspec.structs import replace

from engine.messages import PageGroup
from engine.vllm_internals.contract import AHEAD_PATHS, FAST_PATHS, FEWER_COPIES, JIT_MONITOR, LIMITS, POOL_SIZE
from model_impl.cpu import DECODE, READY_MADE
from model_impl.cpu import FAST_PATHS as KERNEL_PATHS
from model_impl.cpu.native import KernelsUnavailableError, load
from server.engine_client import ReaderBehind, RequestFailed
from server.process_engine_client import ProcessEngineClient
from tests.engine.conftest import MAX_CONTEXT, PAGE, collect, config, prompt, request, token_ids, until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


def group(engine: ProcessEngineClient, kind: str) -> PageGroup:
    assert engine.stats is not None
    return next(group for group in engine.stats.page_groups if group.group == kind)


def is_idle(engine: ProcessEngineClient) -> bool:
    stats = engine.stats
    return stats is not None and stats.running == stats.waiting == 0 and not any(g.used for g in stats.page_groups)


async def test_ready_tells_what_the_front_end_needs(engine: ProcessEngineClient) -> None:
    ready = engine.ready
    assert ready is not None
    assert ready.model_class.startswith("model_impl.")  # ours, not vLLM's own
    assert ready.max_context == MAX_CONTEXT  # the option after -- won over our default
    assert ready.eos_token_ids == (config()["eos_token_id"],)
    assert [group.group for group in ready.page_groups] == ["sliding", "global"]
    assert all(group.page_size == PAGE and group.free > 0 for group in ready.page_groups)


async def test_ready_tells_which_fast_paths_are_taken(engine: ProcessEngineClient) -> None:
    assert engine.ready is not None
    paths = {path.name: path for path in engine.ready.fast_paths}
    assert list(paths) == [path.name for path in FAST_PATHS]
    off = {path.name: path.reason for path in engine.ready.fast_paths if not path.on}
    for path in NOT_FOR_THIS:
        assert off.pop(path.name)
    reason = why_no_kernels()
    kernels = [path for path in KERNEL_PATHS if path not in NOT_FOR_THIS]
    assert off == ({} if reason is None else {path.name: reason for path in kernels} | {DECODE.name: NOT_FUSED})


NOT_FOR_THIS = (*AHEAD_PATHS, FEWER_COPIES, JIT_MONITOR, LIMITS, POOL_SIZE, READY_MADE)
"""For GPUs, where the scheduler runs ahead, and for checkpoints that are quantized."""
NOT_FUSED = "the fused passes are off"


def why_no_kernels() -> str | None:
    """On another CPU, or without a compiler."""
    try:
        load()
    except KernelsUnavailableError as error:
        return str(error)
    return None


async def test_greedy_tokens_are_the_same_alone_and_under_load(engine: ProcessEngineClient) -> None:
    question = prompt(90)
    alone = [await token_ids(engine, request(question, max_tokens=48)) for _ in range(5)]
    load = [
        asyncio.create_task(collect(engine, request(prompt(20 + 9 * n, seed=n + 2), max_tokens=64, temperature=1.0)))
        for n in range(24)
    ]
    crowd = [token_ids(engine, request(question, max_tokens=48)) for _ in range(15)]
    under_load = await asyncio.gather(*crowd)
    await asyncio.gather(*load)
    assert len(alone[0]) == 48
    assert {tuple(ids) for ids in [*alone, *under_load]} == {tuple(alone[0])}


async def test_seeded_sampling_repeats(engine: ProcessEngineClient) -> None:
    sampled: dict[str, Any] = {"max_tokens": 32, "temperature": 1.0, "top_p": 0.95}
    first, again = [await token_ids(engine, request(prompt(40), seed=5, **sampled)) for _ in range(2)]
    other = await token_ids(engine, request(prompt(40), seed=6, **sampled))
    assert first == again != other


async def test_a_stop_token_is_the_last_token_and_is_named(engine: ProcessEngineClient) -> None:
    question = prompt(50, seed=3)
    free = await token_ids(engine, request(question, max_tokens=30))
    stop = free[10]
    deltas = await collect(engine, request(question, max_tokens=30, stop_token_ids=(stop,)))
    stopped = [token_id for delta in deltas for token_id in delta.token_ids]
    assert stopped == free[: free.index(stop) + 1]
    assert (deltas[-1].finish, deltas[-1].stop_token_id) == ("stop", stop)


async def test_the_end_of_turn_stops_unless_ignored(engine: ProcessEngineClient) -> None:
    eos = config()["eos_token_id"]
    certain: dict[str, Any] = {"max_tokens": 4, "logit_bias": {eos: 100.0}}
    ended = await collect(engine, request(prompt(20), ignore_eos=False, **certain))
    assert [(d.token_ids, d.finish, d.stop_token_id) for d in ended] == [([eos], "stop", eos)]
    ignored = await collect(engine, request(prompt(20), **certain))
    assert [token_id for delta in ignored for token_id in delta.token_ids] == [eos] * 4
    assert (ignored[-1].finish, ignored[-1].stop_token_id) == ("length", None)


async def test_a_follow_up_finds_the_pages_of_what_was_generated(engine: ProcessEngineClient) -> None:
    question = prompt(300, seed=500)
    first = await collect(engine, request(question, max_tokens=200))
    answer = [token_id for delta in first for token_id in delta.token_ids]
    follow_up = await collect(engine, request(question + answer + prompt(5)))
    assert first[0].cached_tokens == 0
    assert all(delta.cached_tokens is None for delta in first[1:])
    # The last generated token was never an input, so its page (and any partial one) cannot be there.
    assert follow_up[0].cached_tokens == (300 + 200 - 1) // PAGE * PAGE


async def test_window_pages_are_given_back_and_global_pages_stay(engine: ProcessEngineClient) -> None:
    """And leaving the iterator aborts: all pages of the request are given back."""
    await until(lambda: is_idle(engine))
    length = 3000
    window = config()["sliding_window"]
    window_groups = 3  # vLLM makes three sliding groups and a global one of 3:1, each with a quarter of the layers
    most_window_pages = window_groups * (window // PAGE + 2)
    stream = engine.generate(request(prompt(length, seed=9), max_tokens=MAX_CONTEXT))
    generated = 0
    seen = []
    async for delta in stream:
        generated += len(delta.token_ids)
        seen.append(tuple(group(engine, kind).used for kind in ("sliding", "global")))
        in_decode = [pages for pages in seen if pages[1] > length // PAGE + 1]
        if generated > 500 and len({total for _, total in in_decode}) > 1:  # global pages grow with the text
            break
    else:
        pytest.fail("the counts of global pages never grew with the text")
    await stream.aclose()
    assert all(0 < sliding <= most_window_pages for sliding, _ in in_decode)
    await until(lambda: is_idle(engine))
    counts = [group(engine, kind) for kind in ("sliding", "global")]
    assert engine.ready is not None
    assert counts[0].cached + counts[1].cached + counts[0].free == engine.ready.page_groups[0].free


async def test_a_waiting_request_can_be_aborted(engine: ProcessEngineClient) -> None:
    await until(lambda: is_idle(engine))
    running = [
        asyncio.create_task(collect(engine, request(prompt(8, seed=n + 2), max_tokens=4000))) for n in range(160)
    ]
    await until(lambda: engine.stats is not None and engine.stats.waiting > 0)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await until(lambda: is_idle(engine))
    assert len(await token_ids(engine, request(prompt(8)))) == 16


async def test_what_came_of_an_aborted_request_can_be_read(engine: ProcessEngineClient) -> None:
    """By the reader for whose absence it was aborted."""
    asked = request(prompt(30), max_tokens=MAX_CONTEXT - 100)
    deltas = engine.generate(asked)
    ids = (await anext(deltas)).token_ids
    await asyncio.sleep(0.05)  # some more come, that nobody reads
    assert engine.is_running(asked.request_id)
    engine.abort(asked.request_id)
    assert not engine.is_running(asked.request_id)
    with suppress(ReaderBehind):
        while True:
            ids += (await anext(deltas)).token_ids
    assert len(ids) < MAX_CONTEXT - 100
    await until(lambda: is_idle(engine))
    asked = request(prompt(30), max_tokens=len(ids))
    assert await token_ids(engine, asked) == ids


async def test_a_lower_priority_number_goes_first(engine: ProcessEngineClient) -> None:
    await until(lambda: is_idle(engine))
    finished: list[str] = []

    async def run(name: str, priority: int) -> None:
        await collect(engine, request(prompt(16, seed=len(name)), priority, max_tokens=60))
        finished.append(name)

    late = [run(f"late {n}", 5) for n in range(300)]
    await asyncio.gather(*late, run("urgent", 0))
    assert finished.index("urgent") < 200


@pytest.mark.parametrize(
    ("prompt_ids", "sampling", "words"),
    [
        ([], {}, "empty"),
        (prompt(MAX_CONTEXT + 1), {}, str(MAX_CONTEXT)),
        ([3, config()["vocab_size"]], {}, "vocabulary"),
        ([3, -1], {}, "vocabulary"),
        ([3], {"temperature": -1.0}, "temperature"),
        ([3], {"temperature": float("nan")}, "temperature"),
        ([3], {"top_p": 0.0}, "top_p"),
        ([3], {"max_tokens": 0}, "max_tokens"),
        ([3], {"stop_token_ids": (10**9,)}, "stop_token_ids"),
        ([3], {"logit_bias": {-1: 1.0}}, "logit_bias"),
        ([3], {"logit_bias": {5: float("nan")}}, "logit_bias"),
        ([3], {"seed": 2**80}, "large"),
    ],
)
async def test_a_bad_request_fails_alone(
    engine: ProcessEngineClient, prompt_ids: list[int], sampling: dict[str, Any], words: str
) -> None:
    neighbour = asyncio.create_task(token_ids(engine, request(prompt(30), max_tokens=24)))
    with pytest.raises(RequestFailed, match=words):
        await collect(engine, request(prompt_ids, **sampling))
    assert len(await neighbour) == 24


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1, 2**64 - 1])
async def test_any_seed_of_64_bits_is_served_or_refused(engine: ProcessEngineClient, seed: int) -> None:
    try:
        assert len(await token_ids(engine, request(prompt(8), seed=seed, temperature=1.0))) == 16
    except RequestFailed as error:
        assert "seed" in str(error)  # noqa: PT017 - both outcomes are right
    assert engine.status.state == "ready"


async def test_generation_ends_at_the_context(engine: ProcessEngineClient) -> None:
    deltas = await collect(engine, request(prompt(MAX_CONTEXT - 3), max_tokens=100))
    assert sum(len(delta.token_ids) for delta in deltas) == 3
    assert deltas[-1].finish == "length"


async def test_pages_are_found_by_the_same_salt_only(engine: ProcessEngineClient) -> None:
    ids = prompt(300, seed=77)
    found = []
    for salt in ("one", "one", "two", "", "two", ""):
        deltas = await collect(engine, replace(request(ids), cache_salt=salt))
        found.append(deltas[0].cached_tokens)
    whole = (300 - 1) // PAGE * PAGE
    assert found == [0, whole, 0, 0, whole, whole]
