"""LoRA adapters in a real engine: each request has its own, alone and in one batch, after a restart too."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from engine.adapter_files import CONFIG, WEIGHTS
from engine.messages import Adapter, Continuation, Generate, Sampling
from server.engine_client import RequestFailed
from server.process_engine_client import ProcessEngineClient
from tests.engine.conftest import MODEL, collect, prompt, request, token_ids, until
from tests.lora_adapters import save_adapter

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

IDS = count(100)
"""Of adapters that a test loads."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [save_adapter(root / f"{seed}", MODEL, seed=seed) for seed in (1, 2, 3)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folders: list[Path]) -> AsyncIterator[ProcessEngineClient]:
    adapters = [Adapter(number, f"a{number}", str(folder)) for number, folder in enumerate(folders[:2], 1)]
    client = ProcessEngineClient(
        str(MODEL),
        # In float32, where no two tokens are so near to each other that the batch decides between them.
        [
            *("--enable-lora", "--max-loras=2", "--max-cpu-loras=2", "--max-lora-rank=8"),
            *("--max-model-len=4096", "--dtype=float32"),
        ],
        adapters=adapters,
    )
    await client.start()
    await until(lambda: client.status.state == "ready" or client.status.final)
    assert client.status.state == "ready", client.status.detail
    yield client
    await client.close()


def of(folders: list[Path], number: int) -> Adapter:
    return Adapter(number, f"a{number}", str(folders[number - 1]))


def greedy(question: list[int], adapter: Adapter | None, tokens: int = 40) -> Generate:
    return replace(request(question, max_tokens=tokens), adapter=adapter)


async def test_two_adapters_and_the_model_in_one_batch_are_as_each_alone(
    engine: ProcessEngineClient, folders: list[Path]
) -> None:
    assert engine.ready is not None
    assert engine.ready.max_adapters == 2
    kinds = [None, of(folders, 1), of(folders, 2)]
    questions = [prompt(70, seed=seed) for seed in (1, 2)]
    alone = [[await token_ids(engine, greedy(question, kind)) for kind in kinds] for question in questions]
    assert len(set(map(tuple, alone[0]))) == 3  # each adapter says something of its own
    several = [token_ids(engine, greedy(question, kind)) for question in questions * 4 for kind in kinds]
    together = await asyncio.gather(*several)
    assert together == [ids for one in alone * 4 for ids in one]


async def test_a_third_adapter_takes_turns_and_touches_nobody(engine: ProcessEngineClient, folders: list[Path]) -> None:
    """Two may be in a batch and at hand, so that a third takes another's place; the model's own requests have none."""
    question = prompt(50, seed=5)
    plain = await token_ids(engine, greedy(question, None))
    third = of(folders, 3)
    kinds = [of(folders, 1), of(folders, 2), third, None]
    alone = [await token_ids(engine, greedy(question, kind)) for kind in kinds]
    assert alone[3] == plain
    together = await asyncio.gather(*(token_ids(engine, greedy(question, kind)) for kind in kinds * 3))
    assert together == alone * 3


async def test_pages_are_apart_also_under_the_same_name(engine: ProcessEngineClient, folders: list[Path]) -> None:
    question = prompt(200, seed=9)
    first = Adapter(next(IDS), "same", str(folders[0]))
    second = Adapter(next(IDS), "same", str(folders[1]))
    cached = []
    for adapter in (None, first, second, first, second, None):
        deltas = await collect(engine, greedy(question, adapter))
        cached.append(bool(deltas[0].cached_tokens))
    assert cached == [False, False, False, True, True, True]


async def test_a_second_part_has_the_adapter_of_the_first(engine: ProcessEngineClient, folders: list[Path]) -> None:
    """Kept on its pages, and where it has to be added again (another seed)."""
    question, adapter = prompt(60, seed=4), of(folders, 1)
    thought = await token_ids(engine, greedy(question, adapter, 10))
    expected = await token_ids(engine, greedy([*question, *thought, 60, 61], adapter, 20))
    for seed in (None, 7):
        then = Continuation(10, 0, (60, 61), Sampling(max_tokens=20, ignore_eos=True, seed=seed))
        parts = await collect(engine, replace(greedy(question, adapter, 64), then=then))
        second = [one for index, one in enumerate(parts) if any(before.goes_on for before in parts[:index])]
        assert [token_id for one in second for token_id in one.token_ids] == expected


async def test_what_runs_keeps_its_adapter_when_that_is_unloaded(
    engine: ProcessEngineClient, folders: list[Path], tmp_path: Path
) -> None:
    """Though its files hold another by then, and another takes its name."""
    folder = save_adapter(tmp_path / "moved", MODEL, seed=1)
    question, adapter = prompt(60, seed=6), Adapter(next(IDS), "moved", str(folder))
    expected = await token_ids(engine, greedy(question, of(folders, 1), 400))
    await engine.load_adapter(adapter)
    deltas = engine.generate(greedy(question, adapter, 400))
    ids = list((await anext(deltas)).token_ids)
    shutil.copy(folders[1] / WEIGHTS, folder / WEIGHTS)
    engine.unload_adapter(adapter.id)
    following = Adapter(next(IDS), "moved", str(folder))
    await engine.load_adapter(following)
    ids += [token_id async for delta in deltas for token_id in delta.token_ids]
    assert ids == expected
    assert await token_ids(engine, greedy(question, following)) == await token_ids(
        engine, greedy(question, of(folders, 2))
    )


async def test_what_cannot_be_loaded_is_told_in_words(
    engine: ProcessEngineClient, folders: list[Path], tmp_path: Path
) -> None:
    broken = save_adapter(tmp_path / "broken", MODEL)
    (broken / WEIGHTS).write_bytes(b"no tensors")
    wide = save_adapter(tmp_path / "wide", MODEL, rank=16)
    dora = save_adapter(tmp_path / "dora", MODEL, use_dora=True)
    for path, words in {
        tmp_path / "nowhere": "there is no folder",
        broken: "no safetensors file",
        wide: "its rank is 16, and the engine takes 8",
        dora: "DoRA",
    }.items():
        with pytest.raises(RequestFailed, match=words):
            await engine.load_adapter(Adapter(next(IDS), "bad", str(path)))
        with pytest.raises(RequestFailed, match="cannot be loaded; the server's log says why"):
            await collect(engine, greedy(prompt(5), Adapter(next(IDS), "bad", str(path))))
    assert await token_ids(engine, greedy(prompt(5), of(folders, 1)))


async def test_an_engine_that_died_has_its_adapters_again(engine: ProcessEngineClient, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "late", MODEL, seed=8)
    late = Adapter(next(IDS), "late", str(folder))
    await engine.load_adapter(late)
    question = prompt(40, seed=3)
    before = await token_ids(engine, greedy(question, late))
    gone = save_adapter(tmp_path / "gone", MODEL, seed=9)
    lost = Adapter(next(IDS), "gone", str(gone))
    await engine.load_adapter(lost)
    (gone / CONFIG).write_text(json.dumps({"peft_type": "OTHER"}))
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: engine.status.state == "lost")
    await until(lambda: engine.status.state == "ready")
    assert await token_ids(engine, greedy(question, late)) == before
    with pytest.raises(RequestFailed, match="cannot be loaded"):
        await collect(engine, greedy(question, lost))
