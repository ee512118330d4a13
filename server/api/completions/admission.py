"""From a checked body of a text completion to a request of the core."""

from typing import cast

from server.api.common.formats import forms_in
from server.api.common.sampling import logit_bias_of, prompt_logprobs_of, sampling_of, stop_of
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
        allowed_token_ids=asked.allowed_token_ids,
        bad_words=asked.bad_words or (),
        stop=stop_of(asked),
        n=asked.n or 1,
        forms=forms_in(asked),
        shown=Shown(
            logprobs=asked.logprobs,
            prompt_logprobs=_prompt_logprobs(asked),
            tokens_as_ids=bool(asked.return_tokens_as_token_ids),
            token_ids=bool(asked.return_token_ids),
            control_tokens=asked.skip_special_tokens is False,
        ),
        priority=asked.priority,
        cache_salt=asked.cache_salt or "",
        streamed=bool(asked.stream),
    )


def _prompt_logprobs(asked: CompletionRequest) -> int | None:
    """For the echo, for `prompt_logprobs`, or for both: then the larger number, of which each takes its own."""
    of_echo = asked.logprobs if asked.echo else None
    return max((number for number in (of_echo, prompt_logprobs_of(asked)) if number is not None), default=None)


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
