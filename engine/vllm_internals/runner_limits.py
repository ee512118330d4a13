"""How long the lists of a request may be for vLLM's V2 runner, which refuses longer ones inside a step."""

from vllm import envs
from vllm.v1.worker.gpu.sample.logit_bias import (
    MAX_NUM_ALLOWED_TOKEN_IDS,
    MAX_NUM_LOGIT_BIAS_TOKENS,
    MAX_NUM_STOP_TOKEN_IDS,
)

from engine.messages import SamplingLimits


def v2_limits() -> SamplingLimits:
    """Those of the installed release; two of them are variables of the environment."""
    return SamplingLimits(
        stop_token_ids=MAX_NUM_STOP_TOKEN_IDS,
        logit_bias=MAX_NUM_LOGIT_BIAS_TOKENS,
        allowed_token_ids=MAX_NUM_ALLOWED_TOKEN_IDS,
        bad_words=envs.VLLM_MAX_NUM_BAD_WORDS,
        bad_word_tokens=envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS,
    )
