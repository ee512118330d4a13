"""The typed boundary between the front end and an engine process: every message that crosses it, and its encoding.

Knows nothing of chat, modes or templates: token ids, sampling parameters and counts only. Imports neither torch nor
vLLM, so that both processes (and the fake engine of the tests) share this file.
"""

from typing import Literal, NamedTuple

import msgspec

from engine.sampling import TokenSampling

PROTOCOL_VERSION = 13
"""One more with every change of what crosses: a message or field that is new, gone, renamed or means something else.

An engine and a front end of different versions do not work together; no attempt is made at being compatible.
"""
HELD_TOKENS = "held_tokens"
"""How vLLM's sampling parameters name those of a request, among their extra arguments."""


class Sampling(TokenSampling, frozen=True, kw_only=True, omit_defaults=True):
    """How one generation draws its tokens, and where it ends; names and ranges as in vLLM's SamplingParams."""

    max_tokens: int
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    """None: all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Tokens of which the last is not drawn after the others."""
    grammar: str | None = None
    """What may be generated, in llguidance's Lark dialect; `<[n]>` in it is the token n."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told with each one drawn; 0: the drawn one's probability alone."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens; the prompt is then computed without the prefix cache."""


class Continuation(msgspec.Struct, frozen=True):
    """The second part of a generation, which begins when the first part has spent its tokens.

    The first part may draw `after_tokens` tokens. If it draws one more, that token is dropped, `forced_token_ids` are
    appended to the others, and `sampling` draws the rest. If `unless_token_id` is drawn before that happens, or as the
    token too many, there is no second part.
    """

    after_tokens: int
    unless_token_id: int
    forced_token_ids: tuple[int, ...]
    sampling: Sampling


class Adapter(msgspec.Struct, frozen=True):
    """A LoRA adapter in the folder `path`. `id`, from 1 on, is never another's, also where a name is given anew: pages
    of the prefix cache belong to it.
    """

    id: int
    name: str
    path: str


class Generate(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Start one generation. `priority`: lower runs first. `then`: a second part, which the engine begins by itself.

    `cache_salt`: pages are found again only by generations of the same salt. `adapter`: what is added to the model;
    the engine loads it if it is not there. `held_tokens`: so many tokens show nothing until they are all there.
    """

    request_id: str
    prompt_ids: list[int]
    sampling: Sampling
    priority: int = 0
    then: Continuation | None = None
    cache_salt: str = ""
    adapter: Adapter | None = None
    held_tokens: int = 0


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Stop a generation and free its pages; unknown ids are ignored. No further message about it follows."""

    request_id: str


class Prioritize(msgspec.Struct, frozen=True, tag=True):
    """Give a generation another priority, from the next step on; unknown ids are ignored."""

    request_id: str
    priority: int


class Reload(msgspec.Struct, frozen=True, tag=True):
    """Take the weights of the checkpoint in `folder`, of the same shape, once nothing runs; Reloaded answers."""

    folder: str


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Have an adapter at hand; AdapterLoaded answers."""

    adapter: Adapter


class UnloadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Forget an adapter. What runs with it goes on; unknown ids are ignored."""

    adapter_id: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave the engine process after the current step."""


class Loading(msgspec.Struct, frozen=True, tag=True):
    """Progress of the start: `fraction` from 0 to 1, `stage` in words for a person."""

    stage: str
    fraction: float


class PageGroup(msgspec.Struct, frozen=True):
    """One kind of KV cache pages: `group` is "sliding" or "global", counts are in pages of `page_size` tokens."""

    group: str
    page_size: int
    used: int
    cached: int
    free: int


class FastPathStatus(msgspec.Struct, frozen=True):
    """Whether the engine takes one of our faster ways through vLLM, and why or why not.

    `unexpected`: it is off because vLLM has changed, not by anyone's choice. The names are those of
    `engine/vllm_internals/README.md`.
    """

    name: str
    on: bool
    reason: str
    unexpected: bool = False


class PageNeed(msgspec.Struct, frozen=True):
    """What a request takes of one group of layers: a page for each `page_size` tokens, but never more than `most`."""

    page_size: int
    most: int


class SamplingLimits(msgspec.Struct, frozen=True):
    """How much of a list the engine's sampler has room for; None: any number. Beyond it, a step would fail.

    `stop_token_ids` counts those of the model too, and only where there are `min_tokens`. `bad_word_tokens`: in all bad
    words together.
    """

    stop_token_ids: int | None = None
    logit_bias: int | None = None
    allowed_token_ids: int | None = None
    bad_words: int | None = None
    bad_word_tokens: int | None = None


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine takes requests. `max_context` in tokens (prompt and generated together); `max_num_seqs` is how many
    generations run at once. `max_adapters`: so many adapters may be in one batch; 0 where there can be none.

    `page_groups` and `page_needs` (one for each group of layers; there may be several of a kind) are empty where pages
    cannot be counted. `cache_config`: the KV cache's configuration by vLLM's names.
    """

    protocol: int
    engine_version: str
    model_class: str
    max_context: int
    max_num_seqs: int
    eos_token_ids: tuple[int, ...]
    page_groups: tuple[PageGroup, ...]
    fast_paths: tuple[FastPathStatus, ...] = ()
    page_needs: tuple[PageNeed, ...] = ()
    cache_config: dict[str, str] = {}
    sampling_limits: SamplingLimits = SamplingLimits()
    max_adapters: int = 0


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The natural log-probability of a token, and of the likeliest in its place, in order; `top` is (id, logprob).

    By the model alone: before temperature, penalties and bias.
    """

    logprob: float
    top: list[tuple[int, float]] = []


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """New tokens of one generation.

    `cached_tokens` (prompt tokens found in the prefix cache) comes with the first delta. `finish` is None while the
    generation runs. A stop token is the last of `token_ids` and is named again in `stop_token_id`. `logprobs`, where
    they were asked for, has one entry for each of `token_ids`. `prompt_logprobs` comes with the first delta: one entry
    for each of the prompt's tokens, None for the first.

    `goes_on`: the generation has a Continuation, and this delta ends the first part. Its last token is the one beyond
    `after_tokens`. The next delta is the first of the second part, under the same id; it has `cached_tokens` again,
    unless the pages were kept.
    """

    request_id: str
    token_ids: list[int]
    cached_tokens: int | None = None
    finish: Literal["stop", "length", "abort"] | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    goes_on: bool = False


class Step(msgspec.Struct, frozen=True, tag=True):
    """All that one engine step produced, in one message. Empty ones tell, now and then, that steps end."""

    deltas: list[Delta]


STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds by which steps are counted, as vLLM's `iteration_tokens`."""


class Stats(msgspec.Struct, frozen=True, tag=True):
    """The engine's load: requests and KV pages; sent when it changed, at most a few times a second.

    Since the engine's start: `preemptions` of generations for want of pages, and for each of STEP_TOKENS the steps that
    computed so many tokens, but more than the bound before; then those that computed more; `step_tokens_sum` in all.
    """

    running: int
    waiting: int
    page_groups: tuple[PageGroup, ...]
    preemptions: int = 0
    step_tokens: tuple[int, ...] = ()
    step_tokens_sum: int = 0


class Reloaded(msgspec.Struct, frozen=True, tag=True):
    """The answer to a Reload; `error` says why the weights are the old ones still."""

    error: str | None = None


class AdapterLoaded(msgspec.Struct, frozen=True, tag=True):
    """The answer to a LoadAdapter; `error` says in words why it is not loaded."""

    adapter_id: int
    error: str | None = None


class Failed(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """`request_id` set: that request was refused, in words for its client; None: the engine is going down.

    `is_broken`: it was not refused, but a step failed on it, and did not without it. What is said then, and of the
    engine, is for the log.
    """

    message: str
    request_id: str | None = None
    is_broken: bool = False


ToEngine = Generate | Abort | Prioritize | Reload | LoadAdapter | UnloadAdapter | Shutdown
FromEngine = Loading | Ready | Step | Stats | Reloaded | AdapterLoaded | Failed

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """One message as msgpack."""
    return _encoder.encode(message)


class Unreadable(NamedTuple):
    """In place of a Generate with a value that no request may have; `reason` names it."""

    request_id: str
    reason: str


def decode_to_engine(data: bytes) -> ToEngine | Unreadable:
    """Raises msgspec.DecodeError when `data` is no message for an engine."""
    try:
        return _to_engine.decode(data)
    except msgspec.ValidationError as error:
        fields = msgspec.msgpack.decode(data)
        if isinstance(fields, dict) and fields.get("type") == Generate.__name__ and "request_id" in fields:
            return Unreadable(str(fields["request_id"]), str(error))
        raise


def decode_from_engine(data: bytes) -> FromEngine:
    """Raises msgspec.DecodeError when `data` is no message from an engine."""
    return _from_engine.decode(data)
