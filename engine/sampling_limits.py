"""Whether a generation asks for longer lists than the engine's sampler has room for.

vLLM's V2 runner looks at them inside a step, where its error ends the engine. The front end asks at admission, where it
can name the client's field; the engine once more, for whoever speaks to it.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from engine.messages import Generate, Sampling, SamplingLimits


class Excess(NamedTuple):
    """`found` of what a field of that name holds (`unit`), where there is room for `most`."""

    field: str
    unit: str
    found: int
    most: int


def excess(sampling: Sampling, limits: SamplingLimits, eos_token_ids: Collection[int]) -> Excess | None:
    """The first field that goes beyond the limits; `eos_token_ids`: the model's, which end every text."""
    for field, unit, found, most in _lengths(sampling, limits, eos_token_ids):
        if most is not None and found > most:
            return Excess(field, unit, found, most)
    return None


def check_limits(request: Generate, limits: SamplingLimits, eos_token_ids: Collection[int]) -> None:
    """Raises ValueError, in words for a client, where a part of the request goes beyond the limits."""
    for sampling in (request.sampling, *(() if request.then is None else (request.then.sampling,))):
        found = excess(sampling, limits, eos_token_ids)
        if found is not None:
            raise ValueError(f"{found.field} has {found.found} {found.unit}; the engine takes at most {found.most}")


def _lengths(
    sampling: Sampling, limits: SamplingLimits, eos_token_ids: Collection[int]
) -> Iterator[tuple[str, str, int, int | None]]:
    if sampling.min_tokens:
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)}
        yield "stop_token_ids", "tokens", len(ends), limits.stop_token_ids
    yield "logit_bias", "tokens", len(sampling.logit_bias or ()), limits.logit_bias
    yield "allowed_token_ids", "tokens", len(sampling.allowed_token_ids or ()), limits.allowed_token_ids
    yield "bad_words", "ways to write them", len(sampling.bad_words), limits.bad_words
    yield "bad_words", "tokens", sum(map(len, sampling.bad_words)), limits.bad_word_tokens
