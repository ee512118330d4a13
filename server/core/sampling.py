"""Where a client's sampling fields and the mode's defaults meet, whichever API they came through."""

from collections.abc import Sequence

import msgspec

from engine.messages import Sampling
from engine.sampling import SAMPLING_FIELDS
from server.core.request import Conversation, Request
from server.core.serving import Serving
from server.errors import BadRequestError
from server.modes.profile import ModeProfile, ThinkingMode

SEEDS = 2**64
"""How many there are: from -2^63 to 2^63-1."""


def plan_sampling(request: Request, profile: ModeProfile, max_tokens: int, serving: Serving) -> Sampling:
    """How the first choice is drawn; raises BadRequestError."""
    stop = request.stop
    if stop.min_tokens > max_tokens:
        raise request.refusal("min_tokens", f"{{field}} is {stop.min_tokens}, above the limit of {max_tokens}.")
    stop_ids = known_ids(stop.token_ids, request.name("stop_token_ids"), serving)
    known_ids(tuple(request.logit_bias), request.name("logit_bias"), serving)
    drawn = {name: request.sampling.get(name, getattr(profile, name)) for name in SAMPLING_FIELDS}
    return Sampling(
        **drawn,
        max_tokens=max_tokens,
        seed=request.seed,
        min_tokens=stop.min_tokens,
        ignore_eos=stop.ignore_eos,
        stop_token_ids=tuple(stop_ids),
        logit_bias=dict(request.logit_bias) or None,
        logprobs=request.shown.logprobs,
        prompt_logprobs=request.shown.prompt_logprobs,
    )


def answer_sampling(request: Request, profile: ModeProfile, thinking: Sampling) -> Sampling:
    """How the answer after a thinking is drawn: as the profile says, where the client says nothing."""
    if not isinstance(profile, ThinkingMode) or not isinstance(request.prompt, Conversation):
        return thinking
    own = {name: value for name, value in profile.answer.items() if name not in request.sampling}
    return msgspec.structs.replace(thinking, **own) if own else thinking


def choices_of(sampling: Sampling, n: int) -> list[Sampling]:
    """The same for each of `n` choices; a seed counts up, so that they differ and can be had again."""
    if sampling.seed is None:
        return [sampling] * n
    seeds = [(sampling.seed + SEEDS // 2 + index) % SEEDS - SEEDS // 2 for index in range(n)]
    return [msgspec.structs.replace(sampling, seed=seed) for seed in seeds]


def priority_of(request: Request, profile: ModeProfile, serving: Serving) -> int:
    """The client's own where the server allows one, else the mode's; raises BadRequestError."""
    if not request.priority:
        return profile.priority
    if not serving.settings.allow_priority:
        raise request.refusal("priority", "{field} is the server's to set; it was started without --allow-priority.")
    return request.priority


def known_ids(ids: Sequence[int], param: str, serving: Serving) -> Sequence[int]:
    """`ids`, all of which the model has; raises BadRequestError for `param`."""
    unknown = {token_id for token_id in set(ids) if not serving.fmt.vocabulary.token_text(token_id)}
    if unknown:
        raise BadRequestError(f"{param}: the model has no token {min(unknown)}.", param=param)
    return ids
