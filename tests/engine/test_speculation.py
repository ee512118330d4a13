"""Budgets with speculative tokens: exact, and the same answers as without them.

Without a model: an executor that has a part of each draft right, under the scheduler that waits for tokens and under
the one that runs ahead. With the embedded one: vLLM's n-grams, on a real engine.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine.messages import Continuation, Delta, Generate, Sampling
from engine.vllm_internals.attach import attach
from engine.vllm_internals.contract import AHEAD_PATHS, EXTENSION, MULTI_STEP
from server.engine_client import RequestFailed
from server.process_engine_client import ProcessEngineClient
from tests.engine.conftest import MAX_CONTEXT, MODEL, collect, prompt, request, until
from tests.engine.test_ahead_scheduler import (
    Counting,
    NoExtender,
    budgets_spent,
    by_request,
    checking_executor,
    draw,
    new_engine,
    shape_with,
    with_budgets,
)
from tests.engine.test_continuation import parts

DRAFTS = 4
SPECULATION = {"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
NEVER = 99999
"""No token of the vocabulary."""
THE_SAME = 7
"""Of a draft: which tokens it has does not matter to who schedules them."""


def speculating_executor(pages: int, window: int) -> Any:
    """One that drafts for every row; how many of a draft's tokens are right is a matter of the row's position."""
    from vllm.v1.outputs import DraftTokenIds

    class Speculating(checking_executor(pages, window)):  # type: ignore[misc]  # a base made at run time
        def take_draft_token_ids(self) -> Any:
            names = list(self._scheduled.num_scheduled_tokens)
            return DraftTokenIds(names, [[THE_SAME] * DRAFTS for _ in names])

        def _row(self, name: str, computed: int) -> list[int]:
            first, known, before = self.rows[name]
            drafts = len(self._scheduled.scheduled_spec_decode_tokens.get(name, ()))
            if before + computed - drafts < known:
                return []
            new = 1 + draw(first, -known) % (drafts + 1)
            self.rows[name][1] += new
            return [draw(first, position) for position in range(known, known + new)]

    return Speculating


@pytest.mark.usefixtures("fresh_environment")
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("pages", [320, 20000])
def test_budgets_are_exact_whatever_is_accepted(tmp_path: Path, ahead: bool, pages: int) -> None:
    plain = new_engine(tmp_path, shape_with(pages))
    expected = by_request(with_budgets(plain, attach(plain), NoExtender()))
    speculation = SPECULATION | {"method": "ngram_gpu" if ahead else "ngram"}
    shape = shape_with(pages) | {"speculative_config": speculation}
    engine = new_engine(tmp_path, shape, ahead, speculating_executor)
    ours = attach(engine)
    (extension,) = (status for status in ours.fast_paths if status.name == EXTENSION.name)
    assert (extension.on, "ahead" in extension.reason) == (not ahead, ahead)
    counting = Counting(ours.extender)
    for extender in (counting, NoExtender()):
        steps = with_budgets(engine, ours, extender)
        assert max(len(delta.token_ids) for step in steps for delta in step) > 2
        assert by_request(steps) == expected
    assert budgets_spent(expected) > 10
    if ahead:
        assert counting.extended == 0
    else:
        assert counting.extended > 10 * max(counting.refused, 1) or pages < 1000


async def started(*options: str) -> ProcessEngineClient:
    """An engine in float32: in bfloat16 a draft's tokens, which are read as a prompt is, are rounded otherwise than
    tokens that come one by one, and of two that are as likely the other may be drawn.
    """
    usual = ("--max-model-len", str(MAX_CONTEXT), f"--kv-cache-memory-bytes={256 << 20}", "--dtype", "float32")
    client = ProcessEngineClient(str(MODEL), [*usual, *options])
    await client.start()
    await until(lambda: client.status.state == "ready" or client.status.final)
    assert client.status.state == "ready", client.status.detail
    return client


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def plain_engine() -> AsyncIterator[ProcessEngineClient]:
    client = await started()
    yield client
    await client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def speculating() -> AsyncIterator[ProcessEngineClient]:
    client = await started("--speculative-config", json.dumps(SPECULATION))
    yield client
    await client.close()


def repetitive(number: int) -> list[int]:
    """A prompt whose n-grams come again."""
    return [*prompt(12 + number, seed=300 + number)] * 4


def tokens(deltas: list[Delta]) -> list[int]:
    return [i for delta in deltas for i in delta.token_ids]


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
async def test_what_a_speculating_engine_takes(speculating: ProcessEngineClient) -> None:
    assert speculating.ready is not None
    paths = {path.name: path for path in speculating.ready.fast_paths}
    assert paths[EXTENSION.name].on
    assert paths[MULTI_STEP.name].reason == "speculative decoding is on"
    assert not any(paths[path.name].on or paths[path.name].unexpected for path in AHEAD_PATHS)
    for refused in ({"min_p": 0.1, "temperature": 1.0}, {"logit_bias": {60: 1.0}}):
        with pytest.raises(RequestFailed, match="not yet supported with speculative decoding"):
            await collect(speculating, request(prompt(20), **refused))


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
async def test_greedy_answers_are_the_same_with_drafts(
    plain_engine: ProcessEngineClient, speculating: ProcessEngineClient
) -> None:
    most = 0
    for number in range(6):
        plain = await collect(plain_engine, request(repetitive(number), max_tokens=150))
        drafted = await collect(speculating, request(repetitive(number), max_tokens=150))
        assert tokens(drafted) == tokens(plain)
        most = max(most, *(len(delta.token_ids) for delta in drafted))
    assert most == 1 + DRAFTS


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("after", [0, 1, 2, 3, 17, 40, 90])
async def test_budgets_hold_in_the_middle_of_a_draft(
    plain_engine: ProcessEngineClient, speculating: ProcessEngineClient, after: int
) -> None:
    forced = tuple(prompt(13, seed=41))
    then = Continuation(after, NEVER, forced, Sampling(max_tokens=40, ignore_eos=True))
    for number in range(3):
        first = request(repetitive(number), max_tokens=after + 60)
        deltas = [
            await collect(one, Generate(f"{first.request_id}-{name}", first.prompt_ids, first.sampling, then=then))
            for name, one in (("plain", plain_engine), ("drafted", speculating))
        ]
        plain, drafted = map(parts, deltas)
        assert drafted == plain
        assert (len(drafted[0]), len(drafted[1])) == (after + 1, 40)
        place = next(number for number, delta in enumerate(deltas[1], 1) if delta.goes_on)
        assert all(delta.cached_tokens is None for delta in deltas[1][place:])  # extended in its place
        follow_up = [*first.prompt_ids, *drafted[0][:after], *forced, *drafted[1]]
        again = [tokens(await collect(one, request(follow_up, max_tokens=20))) for one in (plain_engine, speculating)]
        assert again[0] == again[1]  # by pages that hold what they say
