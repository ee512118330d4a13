"""From a checked body of a text completion to a request of the core."""

from typing import cast

from server.api.common.formats import forms_of
from server.api.common.sampling import logit_bias_of, sampling_of, stop_of
from server.api.completions.body import CompletionRequest
from server.core.request import Received, Request, Shown, Texts, TokenPrompts, new_id
from server.errors import BadRequestError

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_CHOICES = 1024


def completion_request(asked: CompletionRequest, received: Received) -> Request:
    """What is asked. Raises BadRequestError where fields contradict each other."""
    _check_combinations(asked)
    return Request(
        id=new_id("cmpl"),
        prompt=_prompt(asked),
        received=received,
        model=asked.model,
        max_tokens=asked.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        sampling=sampling_of(asked),
        seed=asked.seed,
        logit_bias=logit_bias_of(asked),
        stop=stop_of(asked),
        n=asked.n or 1,
        forms=forms_of(asked.response_format, asked.structured_outputs),
        shown=Shown(
            logprobs=asked.logprobs,
            prompt_logprobs=asked.logprobs if asked.echo else None,
            token_ids=bool(asked.return_token_ids),
        ),
        priority=asked.priority,
        cache_salt=asked.cache_salt or "",
        streamed=bool(asked.stream),
    )


def _check_combinations(asked: CompletionRequest) -> None:
    n = asked.n or 1
    if asked.best_of is not None and asked.best_of != n:
        raise BadRequestError(f"best_of is {asked.best_of} and n {n}: they must be the same.", param="best_of")
    if asked.max_tokens == 0 and not asked.echo:
        raise BadRequestError("max_tokens is 0, which leaves nothing to do without echo.", param="max_tokens")
    if isinstance(asked.prompt, list) and len(asked.prompt) * n > MAX_CHOICES and not isinstance(asked.prompt[0], int):
        raise BadRequestError(f"n: {len(asked.prompt)} prompts with {n} choices each are too many.", param="n")


def _prompt(asked: CompletionRequest) -> Texts | TokenPrompts:
    prompt = asked.prompt
    several = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    if isinstance(several[0], str):
        return Texts(cast("list[str]", several))
    return TokenPrompts(cast("list[list[int]]", several))
