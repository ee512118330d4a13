"""Refuses a request whose response could outgrow the server's memory: choices times tokens times log-probabilities."""

from collections.abc import Sequence

from server.core.events import entry_bytes
from server.core.plan import ChoicePlan
from server.core.request import Request
from server.core.serving import Serving


def check_size(request: Request, choices: Sequence[ChoicePlan], serving: Serving) -> None:
    """Raises BadRequestError where what has to be kept until the end may exceed the settings' `max_response_bytes`.

    A stream keeps the entries of the prompt only, which it sends at once, unless the API keeps all to the end.
    """
    most, kept = serving.settings.max_response_bytes, sum(map(_of_prompt, choices))
    if request.kept_whole or not request.streamed:
        kept += sum(map(_of_completion, choices))
    if kept > most:
        raise request.refusal(
            "logprobs",
            f"{{field}}: with so many tokens in {len(choices)} choices these may take {kept >> 20} MiB, and a response "
            f"may have {most >> 20}. Ask for fewer tokens, choices or log-probabilities, or for a stream.",
        )


def _of_prompt(plan: ChoicePlan) -> int:
    return _bytes(plan.longest_prompt, plan.sampling.prompt_logprobs)


def _of_completion(plan: ChoicePlan) -> int:
    return _bytes(plan.most_tokens, plan.sampling.logprobs)


def _bytes(tokens: int, top: int | None) -> int:
    """Of the log-probabilities of `tokens`, with `top` of the likeliest each; None: none are told."""
    return 0 if top is None else entry_bytes(tokens * (1 + top), top)
