"""Plans the choices after one prompt: where the client's fields and the mode's defaults meet.

Token limit, thinking and its budget, sampling of thinking and answer, a seed for each choice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec

from chat_templates.format import NO_TOKEN, ChatFormat
from engine.messages import Sampling
from engine.sampling import SAMPLING_FIELDS
from engine.sampling_limits import excess
from server.core.plan import AnswerFormat, ChoicePlan, Draft, Fork
from server.core.request import Conversation, Request
from server.core.serving import Serving
from server.core.token_ids import known_ids
from server.modes.limits import budget_tokens, plan_thinking, the_budget, token_limit
from server.modes.mode import Auto, Mode
from server.modes.profile import AutoMode, ModeProfile, ThinkingMode
from server.modes.thinking import ThinkingPlan

NEVER = -100.0  # a bias that no token survives
SEEDS = 2**64
"""How many there are: from -2^63 to 2^63-1."""


def choice_plans(
    request: Request, mode: Mode, prompt_ids: list[int], form: AnswerFormat, serving: Serving
) -> list[ChoicePlan]:
    """The plans of the `n` choices after a prompt; raises BadRequestError."""
    sampling = _with_format(_sampling(request, mode.profile, len(prompt_ids), serving), form, serving)
    thinking = _thinking(request, _closing_for(mode, form), prompt_ids, sampling.max_tokens, serving)
    answer = _answer_sampling(request, mode.profile, sampling, form)
    for one in (sampling, answer):
        _check_lengths(request, one, serving)
    return [
        ChoicePlan(prompt_ids, one, thinking, _answer_sampling(request, mode.profile, one, form), mode.plain.name)
        for one in _seeded(sampling, request.n)
    ]


def without_choice(auto: Auto, thinking: ChoicePlan, request: Request) -> Mode | None:
    """The mode of a request that leaves nothing to choose; None where the mode `auto` chooses.

    There is nothing to choose where no thinking may follow (none is open after a raw prompt or a message that is
    continued, no token is left for it, or the prompt is only to be read), nor where one is open that is continued.
    """
    prompt, plan = request.prompt, thinking.thinking
    if plan is None or plan.max_tokens == 0 or request.max_tokens == 0:
        return auto.direct
    if isinstance(prompt, Conversation) and (prompt.continues or not prompt.opens_turn):
        return auto.thinking
    return None


def joined(rule: AutoMode, direct: ChoicePlan, thinking: ChoicePlan) -> ChoicePlan:
    """One choice of two modes: begun as `direct`, and gone on with as `thinking` if it has to be."""
    assert rule.threshold is not None
    return replace(thinking, draft=Draft(direct, rule.draft_tokens, rule.signal, rule.threshold))


def forked(
    request: Request, auto: Auto, thinking: Sequence[ChoicePlan], form: AnswerFormat, serving: Serving
) -> list[ChoicePlan]:
    """The `thinking` choices, whose one prompt ends with the tag that opens it, each begun before that tag: the model
    writes it, or the one that closes a thinking, and then the direct mode answers.
    """
    fmt, (first, *_) = serving.fmt, thinking
    ids, closing = first.prompt_ids, fmt.closing()
    before = ids[: -1 - ids[::-1].index(fmt.think_id)]
    direct = choice_plans(request, auto.direct, [*before, *closing.tag, *closing.separator], form, serving)
    return [
        replace(two, draft=Fork(one, before, _first_tag(two.sampling, fmt), fmt.think_id))
        for one, two in zip(direct, thinking, strict=True)
    ]


def _first_tag(own: Sampling, fmt: ChatFormat) -> Sampling:
    """How a model's tag is drawn that says whether it thinks."""
    tags = (fmt.think_id, fmt.think_end_id)
    return Sampling(max_tokens=1, temperature=own.temperature, seed=own.seed, allowed_token_ids=tags)


def _check_lengths(request: Request, sampling: Sampling, serving: Serving) -> None:
    """Raises BadRequestError for a list that is longer than the engine has room for, with what we add to it."""
    ready = serving.admit()
    found = excess(sampling, ready.sampling_limits, ready.eos_token_ids)
    if found is None:
        return
    asked = {"stop_token_ids": len(set(request.stop.token_ids)), "logit_bias": len(request.logit_bias)}
    ours = found.found - asked.get(found.field, found.found)
    beside = f" beside the {ours} that this request needs itself" if ours else ""
    most = f"at most {found.most - ours}{beside}"
    message = f"{{field}} has {found.found - ours} {found.unit}; this engine takes {most}."
    raise request.refusal(found.field, message)


def _sampling(request: Request, profile: ModeProfile, prompt_tokens: int, serving: Serving) -> Sampling:
    """How the first choice is drawn, up to its form."""
    max_tokens, stop = max(1, _limit(request, profile, prompt_tokens, serving)), request.stop
    if stop.min_tokens > max_tokens:
        raise request.refusal("min_tokens", f"{{field}} is {stop.min_tokens}, above the limit of {max_tokens}.")
    if stop.token_ids:
        known_ids(stop.token_ids, request.name("stop_token_ids"), serving)
    if request.allowed_token_ids:
        known_ids(tuple(request.allowed_token_ids), request.name("allowed_token_ids"), serving)
    if request.logit_bias:
        known_ids(tuple(request.logit_bias), request.name("logit_bias"), serving)
    return Sampling(
        **{name: request.sampling.get(name, getattr(profile, name)) for name in SAMPLING_FIELDS},
        max_tokens=max_tokens,
        seed=request.seed,
        min_tokens=stop.min_tokens,
        ignore_eos=stop.ignore_eos,
        stop_token_ids=stop.token_ids,
        logit_bias=dict(request.logit_bias) or None,
        allowed_token_ids=None if request.allowed_token_ids is None else tuple(request.allowed_token_ids),
        bad_words=tuple(_ways_to_write(request.bad_words, serving.fmt)),
        logprobs=request.shown.logprobs,
        prompt_logprobs=request.shown.prompt_logprobs,
    )


def _ways_to_write(words: Sequence[str], fmt: ChatFormat) -> Iterator[tuple[int, ...]]:
    """The tokens of each word, and those of it with a blank before it where that changes the first of as many (as in
    vLLM's SamplingParams.update_from_tokenizer).
    """
    for word in words:
        plain = tuple(fmt.encode_text(word.lstrip() or word))
        spaced = tuple(fmt.encode_text(" " + word.lstrip()))
        yield plain
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            yield spaced


def _limit(request: Request, profile: ModeProfile, prompt_tokens: int, serving: Serving) -> int:
    """The most tokens to generate; 0 where the prompt is only to be read."""
    context = serving.admit().max_context
    field, prompt = request.name("max_tokens"), request.name(request.prompt_path)
    asked = request.max_tokens
    if asked is not None and request.fits_to_context:
        asked = min(asked, max(1, context - prompt_tokens))
    limit = token_limit(asked, field, profile, prompt_tokens, context, prompt=prompt)
    if request.max_tokens is None and request.default_max_tokens is not None:
        return min(limit, request.default_max_tokens)
    return limit


def _with_format(sampling: Sampling, form: AnswerFormat, serving: Serving) -> Sampling:
    bias = sampling.logit_bias
    if form.forbids_calls and serving.fmt.tool_call_id != NO_TOKEN:
        bias = {**(bias or {}), serving.fmt.tool_call_id: NEVER}
    return msgspec.structs.replace(sampling, grammar=form.grammar, logit_bias=bias)


def _thinking(
    request: Request, mode: Mode, prompt_ids: list[int], max_tokens: int, serving: Serving
) -> ThinkingPlan | None:
    """How long the choices think, if thinking is open at the prompt's end; a raw prompt has no template to open it."""
    prompt, budget = request.prompt, the_budget(request.mode.budgets)
    if mode.closing is None or not isinstance(prompt, Conversation):
        return None
    if (prompt.continues or not prompt.opens_turn) and not serving.fmt.is_thinking_open(prompt_ids):
        return None
    assert isinstance(mode.profile, ThinkingMode)
    most = budget_tokens(budget, mode.profile, max_tokens)
    return plan_thinking(max_tokens, most, mode.profile, mode.closing)


def _closing_for(mode: Mode, form: AnswerFormat) -> Mode:
    """The mode, its thinking closed without what begins an answer where the grammar has that."""
    if mode.closing is None or not form.has_header:
        return mode
    return replace(mode, closing=replace(mode.closing, separator=()))


def _answer_sampling(request: Request, profile: ModeProfile, thinking: Sampling, form: AnswerFormat) -> Sampling:
    """How the answer is drawn, after a thinking if there is any: as the profile says, unless the client does."""
    if form.banned:
        bias = {**(thinking.logit_bias or {}), **dict.fromkeys(form.banned, NEVER)}
        thinking = msgspec.structs.replace(thinking, logit_bias=bias)
    if not isinstance(profile, ThinkingMode) or not isinstance(request.prompt, Conversation):
        return thinking
    own = {name: value for name, value in profile.answer.items() if name not in request.sampling}
    return msgspec.structs.replace(thinking, **own) if own else thinking


def _seeded(sampling: Sampling, n: int) -> list[Sampling]:
    """The same for each of `n` choices; a seed counts up, so that they differ and can be had again."""
    if sampling.seed is None:
        return [sampling] * n
    seeds = [(sampling.seed + SEEDS // 2 + index) % SEEDS - SEEDS // 2 for index in range(n)]
    return [msgspec.structs.replace(sampling, seed=seed) for seed in seeds]
