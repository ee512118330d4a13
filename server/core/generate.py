"""Has the engine run the generations of one choice, one after the other. Knows no text, no HTTP."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

import msgspec

from engine.messages import Delta, Generate, TokenLogprob
from server.core.choice import Advance, Choice
from server.engine_client import EngineClient, EngineUnavailable

T = TypeVar("T")


async def run_choice(
    engine: EngineClient,
    choice: Choice,
    request_id: str,
    priority: int,
    read: Callable[[Advance], T],
    *,
    one_by_one: bool = False,
) -> AsyncGenerator[T, None]:
    """Has the engine run all generations of `choice`, and yields what `read` makes of each advance.

    Leaving early aborts the generation that runs. `one_by_one` advances a token at a time, for a reader that may end
    the choice at any of them (`Choice.stop`). Raises EngineUnavailable and RequestFailed as the engine client does.
    """
    part = 0
    while choice.finish is None:
        generation = choice.generation
        request = Generate(
            f"{request_id}-{part}", generation.prompt_ids, generation.sampling, priority, generation.then
        )
        async with aclosing(engine.generate(request)) as deltas:
            async for delta in deltas:
                if delta.finish == "abort":
                    raise EngineUnavailable("the engine gave up this request")
                for one in _singles(delta) if one_by_one and len(delta.token_ids) > 1 else (delta,):
                    yield read(choice.feed(one))
                    if one.goes_on:
                        generation = choice.generation
                    if choice.generation is not generation or choice.finish is not None:
                        break
                else:
                    continue
                break
            else:
                raise EngineUnavailable("the engine broke off")
        part += 1


def _singles(delta: Delta) -> list[Delta]:
    """The same tokens in a delta each; what ends the generation stays with the last."""
    *first, last = delta.token_ids
    entries: list[list[TokenLogprob] | None] = [None] * len(delta.token_ids)
    if delta.logprobs is not None:
        entries = [[entry] for entry in delta.logprobs]
    singles = [
        msgspec.structs.replace(
            delta, token_ids=[token_id], logprobs=entry, finish=None, stop_token_id=None, goes_on=False
        )
        for token_id, entry in zip(first, entries, strict=False)
    ]
    return [*singles, msgspec.structs.replace(delta, token_ids=[last], logprobs=entries[-1])]
