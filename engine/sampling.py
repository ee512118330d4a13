"""The one definition of how a token is drawn: field names, ranges and neutral values, as in vLLM's SamplingParams.

Profiles and the engine's messages are made from it; the bodies of the HTTP APIs are held to it by a test.
"""

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Temperature = Annotated[float, msgspec.Meta(ge=0.0, le=2.0)]
TopP = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Penalty = Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)]
Repetition = Annotated[float, msgspec.Meta(ge=0.01, le=10.0)]


class TokenSampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a token is drawn. The defaults change nothing: greedy, no cut-off, no penalty."""

    temperature: Temperature = 0.0
    """0 is greedy."""
    top_p: TopP = 1.0
    top_k: Count = 0
    """0: no limit."""
    min_p: Share = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Repetition = 1.0


SAMPLING_FIELDS = TokenSampling.__struct_fields__
