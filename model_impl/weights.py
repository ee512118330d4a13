"""In how many bits weights are held: the names of the formats, and the one that this process's engine uses.

Knows neither torch nor vLLM: the front end names the format too. `model_impl.cpu.quantized` does what these say.
"""

import os
from collections.abc import Mapping
from typing import Literal, get_args

Format = Literal["bf16", "int8", "int4"]
FORMATS: tuple[Format, ...] = get_args(Format)
GGUF = "gguf"
"""What is told of weights that are each in the bits of their GGUF file."""
VARIABLE = "TWOGEAR_WEIGHTS"
"""The environment variable that has the format; worker processes inherit it."""
DEFAULT: Format = "bf16"

BITS: Mapping[Format, int] = {"int8": 8, "int4": 4}
"""Of a weight of a projection."""
TABLE_BITS: Mapping[Format, int] = {"int8": 8, "int4": 8}
"""Of a weight of the input embedding and the output head, which decide more than others about what is answered."""
SHARED = 32
"""Weights of an output that share a scale."""
BYTES_PER_WEIGHT: Mapping[int, float] = {8: 1 + 2 / SHARED, 4: 0.5 + 4 / SHARED}
"""With the scales: for each group one of 16 bits, for 4 bits the smallest value too."""


def weights_format(environment: Mapping[str, str] = os.environ) -> Format:
    """The format that the environment names; bf16 if none. Raises ValueError for a name that is no format."""
    name = environment.get(VARIABLE) or DEFAULT
    for known in FORMATS:
        if name == known:
            return known
    raise ValueError(f"{VARIABLE} must be one of {', '.join(FORMATS)}; it is {name!r}")
