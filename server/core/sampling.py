"""Where a client's sampling fields and the mode's defaults meet, for chat and text completions alike."""

from typing import TypeVar

import msgspec

from engine.messages import Sampling
from engine.sampling import SAMPLING_FIELDS
from server.api.common.fields import INT64
from server.api.common.sampling import SamplingFields
from server.errors import BadRequestError
from server.modes.profile import ModeProfile, ThinkingMode
from server.serving import Serving

T = TypeVar("T")


def plan_sampling(asked: SamplingFields, profile: ModeProfile, max_tokens: int, serving: Serving) -> Sampling:
    """How the first choice is drawn; raises BadRequestError."""
    min_tokens = asked.min_tokens or 0
    if min_tokens > max_tokens:
        raise BadRequestError(f"min_tokens is {min_tokens}, above the limit of {max_tokens}.", param="min_tokens")
    drawn = {name: _either(getattr(asked, name), getattr(profile, name)) for name in SAMPLING_FIELDS}
    drawn["top_k"] = max(0, drawn["top_k"])  # -1 is no limit, too
    return Sampling(
        **drawn,
        max_tokens=max_tokens,
        seed=asked.seed,
        min_tokens=min_tokens,
        ignore_eos=bool(asked.ignore_eos),
        stop_token_ids=tuple(known_ids(asked.stop_token_ids or [], "stop_token_ids", serving)),
        logit_bias=_logit_bias(asked, serving),
    )


def answer_sampling(asked: SamplingFields, profile: ModeProfile, thinking: Sampling) -> Sampling:
    """How the answer after a thinking is drawn: as the profile says, where the client says nothing."""
    if not isinstance(profile, ThinkingMode):
        return thinking
    own = {name: value for name, value in profile.answer.items() if getattr(asked, name) is None}
    return msgspec.structs.replace(thinking, **own) if own else thinking


def choices_of(sampling: Sampling, n: int | None) -> list[Sampling]:
    """The same for each of `n` choices; a seed counts up, so that they differ and can be had again."""
    if sampling.seed is None:
        return [sampling] * (n or 1)
    seeds = [(sampling.seed + INT64 + 1 + index) % (2 * (INT64 + 1)) - INT64 - 1 for index in range(n or 1)]
    return [msgspec.structs.replace(sampling, seed=seed) for seed in seeds]


def stops_of(asked: SamplingFields) -> tuple[str, ...]:
    """The stop strings."""
    return (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())


def priority_of(asked: SamplingFields, profile: ModeProfile, serving: Serving) -> int:
    """The client's own where the server allows one, else the mode's; raises BadRequestError."""
    if not asked.priority:
        return profile.priority
    if not serving.settings.allow_priority:
        raise BadRequestError(
            "priority is the server's to set; it was started without --allow-priority.", param="priority"
        )
    return asked.priority


def known_ids(ids: list[int], param: str, serving: Serving) -> list[int]:
    """`ids`, all of which the model has; raises BadRequestError for `param`."""
    unknown = {token_id for token_id in set(ids) if not serving.fmt.vocabulary.token_text(token_id)}
    if unknown:
        raise BadRequestError(f"{param}: the model has no token {min(unknown)}.", param=param)
    return ids


def _either(asked: T | None, default: T) -> T:
    return default if asked is None else asked


def _logit_bias(asked: SamplingFields, serving: Serving) -> dict[int, float] | None:
    if not asked.logit_bias:
        return None
    bad = next((key for key in asked.logit_bias if not (key.isascii() and key.isdigit() and len(key) < 10)), None)
    if bad is not None:
        raise BadRequestError("logit_bias: the keys must be token ids.", param="logit_bias")
    ids = known_ids([int(key) for key in asked.logit_bias], "logit_bias", serving)
    return dict(zip(ids, asked.logit_bias.values(), strict=True))
