"""When a thought counts as going round in circles: data of a thinking mode. `server.core.repetition` applies it."""

from typing import Annotated

import msgspec


class Repetition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A thought of which `share` of the last `window` n-grams have occurred `count` times is closed for the model.

    So one that is shorter than `window` tokens is never cut.
    """

    enabled: bool = True
    window: Annotated[int, msgspec.Meta(ge=16, le=65536)] = 1024
    ngram: Annotated[int, msgspec.Meta(ge=1, le=64)] = 6
    count: Annotated[int, msgspec.Meta(ge=2, le=64)] = 4
    share: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.9
