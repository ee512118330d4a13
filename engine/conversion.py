"""Between our messages and vLLM's request interface: sampling parameters, log-probabilities, refusals in words."""

import re
import traceback

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from engine.messages import HELD_TOKENS, Sampling, TokenLogprob
from engine.sampling import SAMPLING_FIELDS

_PATH = re.compile(r"(?:/[\w.-]+){2,}")


def refusal(error: Exception) -> str:
    """Why vLLM refuses a request, in words for its client: what names files or code is for the log."""
    text = str(error)
    if isinstance(error, TypeError) or "Traceback" in text or _PATH.search(text):
        traceback.print_exception(error)
        return "the engine refuses this request; the server's log says why"
    return text


def sampling_params(sampling: Sampling, eos_token_ids: tuple[int, ...], held_tokens: int = 0) -> SamplingParams:
    """In vLLM's words; `held_tokens` are for our scheduler. Raises ValueError or vLLM's own error for what it refuses.

    The ids that end a text go in as stop tokens: without a tokenizer vLLM knows none of its own.
    """
    stop_token_ids = set(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stop_token_ids.update(eos_token_ids)
    params = SamplingParams(
        **{name: getattr(sampling, name) for name in SAMPLING_FIELDS},
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
        stop_token_ids=sorted(stop_token_ids),
        skip_clone=True,
        logit_bias=sampling.logit_bias,
        allowed_token_ids=None if sampling.allowed_token_ids is None else list(sampling.allowed_token_ids),
        structured_outputs=None if sampling.grammar is None else StructuredOutputsParams(grammar=sampling.grammar),
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        output_kind=RequestOutputKind.DELTA,
        detokenize=False,
        extra_args={HELD_TOKENS: held_tokens} if held_tokens else None,
    )
    if sampling.bad_words:  # vLLM makes them of texts, for which it has no tokenizer here
        params._bad_words_token_ids = [list(ids) for ids in sampling.bad_words]
    return params


def logprobs_of(completion: CompletionOutput) -> list[TokenLogprob] | None:
    """Of the tokens that came; None where they were not asked for."""
    if completion.logprobs is None:
        return None
    entries = [
        _logprob(token_id, drawn) for token_id, drawn in zip(completion.token_ids, completion.logprobs, strict=True)
    ]
    return [entry for entry in entries if entry is not None]


def prompt_logprobs_of(output: RequestOutput) -> list[TokenLogprob | None] | None:
    """Of the prompt's tokens, whose first has none; None where they were not asked for."""
    if output.prompt_logprobs is None:
        return None
    ids = output.prompt_token_ids or []
    return [_logprob(token_id, likeliest) for token_id, likeliest in zip(ids, output.prompt_logprobs, strict=True)]


def _logprob(token_id: int, likeliest: dict[int, Logprob] | None) -> TokenLogprob | None:
    """Its `top` ends with the token itself where that is not among the likeliest."""
    if likeliest is None:
        return None
    ranked = sorted(likeliest.items(), key=lambda item: item[1].rank or 0)
    return TokenLogprob(likeliest[token_id].logprob, [(other, entry.logprob) for other, entry in ranked])
