"""The model in vLLM gives transformers' log-probabilities, whichever way its pages were filled."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from model_impl.exaone4.architecture import Architecture
from tests.model_impl.config_fields import random_fields
from tests.model_impl.engines import PAGE, engine, generate, largest_difference
from tests.model_impl.tiny import reference_logprobs, save_checkpoint

CONFIGS = int(os.environ.get("TWOGEAR_PARITY_CONFIGS", "7"))

# float32 on both sides leaves about 1e-5; a rope too many, a window off by one or a missing norm gives over 1e-2.
TOLERANCE = 2e-4


@pytest.mark.engine
@pytest.mark.parametrize("number", range(CONFIGS))
def test_logprobs_are_those_of_transformers(number: int, tmp_path: Path) -> None:
    rng = random.Random(number)
    config = random_fields(rng, number)
    reference = save_checkpoint(tmp_path, config)
    architecture = Architecture.from_config(config)
    window = architecture.sliding_window or 48
    lengths = [window - 1, window, window + 1, 8 * window + rng.randint(3, 90), 2]
    prompts = [[rng.randrange(architecture.vocab_size) for _ in range(length)] for length in lengths]
    decoded = [window + PAGE + 5, 7, PAGE + 1, 40, window + 9]

    in_one_piece: dict[str, Any] = {"max_num_batched_tokens": 2048, "enable_prefix_caching": False}
    chunked: dict[str, Any] = {
        "max_num_batched_tokens": rng.randint(17, 70),
        "enable_prefix_caching": True,
        "prefix_cache_retention_interval": rng.choice([0, None]),
    }
    for options in in_one_piece, chunked:
        with engine(tmp_path, **options) as llm:
            alone = generate(llm, prompts[3:4], decoded[3:4])
            mixed = generate(llm, prompts, decoded)
            follow_ups = [scored.ids for scored in mixed]
            again = generate(llm, follow_ups, [PAGE + 2] * len(prompts), score_prompt=False)
        for scored in alone + mixed + again:
            difference = largest_difference(scored, reference_logprobs(reference, scored.ids))
            assert difference < TOLERANCE, f"{len(scored.ids)} tokens, {options}, {config}"
        assert (again[3].cached_tokens > 0) == options["enable_prefix_caching"]
