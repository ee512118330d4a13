"""A slow reader gets several deltas as one, and still sees where one generation replaced another."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from engine.messages import Delta, TokenLogprob
from server.delta_stream import DeltaStream
from server.pacer import Pacer

DELTAS = st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans()), min_size=1, max_size=12)
"""For each delta: its tokens, whether another generation follows it, whether the reader reads after it."""


@given(DELTAS)
def test_nothing_is_lost_and_generations_stay_apart(made: list[tuple[int, bool, bool]]) -> None:
    stream = DeltaStream(lambda _: None, Pacer())
    put: list[Delta] = []
    got: list[Delta] = []
    next_token = 0

    async def run() -> None:
        nonlocal next_token
        for size, goes_on, read in made:
            ids = list(range(next_token, next_token + size))
            next_token += size
            first = not put or put[-1].goes_on
            put.append(
                Delta("id", ids, 5 if first else None, logprobs=[TokenLogprob(-i) for i in ids], goes_on=goes_on)
            )
            stream.put(put[-1])
            if read:
                got.append(await anext(stream))
        while sum(len(delta.token_ids) for delta in got) < next_token:
            got.append(await anext(stream))

    asyncio.run(run())
    assert [i for delta in got for i in delta.token_ids] == list(range(next_token))
    assert [-one.logprob for delta in got for one in delta.logprobs or ()] == list(range(next_token))
    ends = [delta.token_ids[-1] for delta in put if delta.goes_on]
    assert [delta.token_ids[-1] for delta in got if delta.goes_on] == ends
    assert all(delta.goes_on for delta in got if set(ends) & set(delta.token_ids))
    beginnings = {0, *(end + 1 for end in ends)}
    assert {delta.token_ids[0] for delta in got if delta.cached_tokens is not None} == beginnings - {next_token}
