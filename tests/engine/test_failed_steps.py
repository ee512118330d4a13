"""A step that fails ends the request that is to blame. All others go on with the tokens of a quiet engine."""

import asyncio
from itertools import zip_longest
from typing import Any

import msgspec
import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import THINKING
from engine.messages import Continuation, Delta, Generate
from server.engine_client import EngineUnavailable, RequestBroke
from server.process_engine_client import ProcessEngineClient
from server.settings import EMBEDDED_MODEL
from tests.engine import FATAL_PRIORITY, LATE_POISON, POISON, SCHEDULE_PRIORITY
from tests.engine.conftest import begin, collect, prompt, request, token_ids, until
from tests.engine.test_serving import is_idle

TOKENS = 50
FORMAT = ChatFormat.from_folder(EMBEDDED_MODEL)

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


def innocents() -> list[Generate]:
    """Of every kind that has a state in the engine: lengths, penalties, a bias, a grammar, a second part.

    What the model is sure of: where two tokens are nearly as likely, rounding decides, and tokens that are computed
    again are rounded as a prompt's are. Short, and with small penalties, for the same reason.
    """
    kinds: list[dict[str, Any]] = [
        {},
        {"presence_penalty": 0.1, "frequency_penalty": 0.05},
        {"repetition_penalty": 1.03},
        {"min_tokens": 5, "logit_bias": {60: 1.0}},
        {"grammar": 'start: ("1" | "2"){30,50}', "ignore_eos": False},
    ]
    plain = [request(question(number), max_tokens=TOKENS, **kind) for number, kind in enumerate(kinds)]
    first = request(question(7), max_tokens=TOKENS)
    to_its_end = msgspec.structs.replace(first.sampling, ignore_eos=False)
    then = Continuation(20, 1, tuple(FORMAT.close_thinking()), to_its_end)
    return [*plain, msgspec.structs.replace(first, then=then)]


def question(number: int) -> list[int]:
    """A question of a kind that the model has learnt, about which it thinks first."""
    numbers = [17 + 3 * number + 11 * place for place in range(3 + number)]
    return FORMAT.render([{"role": "user", "content": f"What is {' + '.join(map(str, numbers))}?"}], THINKING)


def ids_of(deltas: list[Delta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def culprits() -> list[Generate]:
    return [
        request(prompt(12, seed=90), temperature=POISON),
        request(prompt(12, seed=91), temperature=LATE_POISON, max_tokens=100),
        request(prompt(12, seed=92), SCHEDULE_PRIORITY),
    ]


@pytest.mark.parametrize("culprit", culprits(), ids=["draw", "late draw", "schedule"])
async def test_only_the_request_to_blame_ends(engine: ProcessEngineClient, culprit: Generate) -> None:
    pid = engine.pid
    alone = [await token_ids(engine, one) for one in innocents()]
    running = await asyncio.gather(*(begin(engine, one) for one in innocents()))
    with pytest.raises(RequestBroke) as caught:
        await collect(engine, culprit)
    assert "path" not in str(caught.value)
    assert "Error" not in str(caught.value)
    assert [ids_of(await task) for task in running] == alone
    assert (engine.pid, engine.status.state) == (pid, "ready")
    await until(lambda: is_idle(engine))


async def test_several_to_blame_are_all_found(engine: ProcessEngineClient) -> None:
    pid = engine.pid
    alone = [await token_ids(engine, one) for one in innocents()]
    poison = [request(prompt(9, seed=40 + number), temperature=POISON) for number in range(5)]
    requests = [one for pair in zip_longest(innocents(), poison) for one in pair if one is not None]
    outcomes = await asyncio.gather(*(collect(engine, one) for one in requests), return_exceptions=True)
    assert sum(isinstance(outcome, RequestBroke) for outcome in outcomes) == 5
    assert [ids_of(outcome) for outcome in outcomes if isinstance(outcome, list)] == alone
    assert engine.pid == pid


async def test_a_request_alone_that_breaks_every_time_leaves_the_engine_as_it_was(engine: ProcessEngineClient) -> None:
    pid = engine.pid
    for _ in range(6):
        with pytest.raises(RequestBroke):
            await collect(engine, request(prompt(12), temperature=POISON))
    assert len(await token_ids(engine, request(prompt(12)))) == 16
    assert engine.pid == pid


async def test_a_client_that_leaves_and_one_that_comes_during_the_search(engine: ProcessEngineClient) -> None:
    leaving = await asyncio.gather(*(begin(engine, one) for one in innocents()))
    broken = asyncio.create_task(collect(engine, request(prompt(12), temperature=POISON)))
    late = [asyncio.create_task(token_ids(engine, request(prompt(15, seed=n)))) for n in range(3)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    with pytest.raises(RequestBroke):
        await broken
    assert [len(await one) for one in late] == [16] * 3
    await until(lambda: is_idle(engine))


async def test_an_error_while_tokens_are_handed_out_ends_the_engine(engine: ProcessEngineClient) -> None:
    """Then it is not known who got theirs."""
    running = await begin(engine, request(prompt(30), max_tokens=5000))
    with pytest.raises(EngineUnavailable, match="the engine failed"):
        await collect(engine, request(prompt(5), FATAL_PRIORITY))
    with pytest.raises(EngineUnavailable, match="the engine failed"):
        await running
