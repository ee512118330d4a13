"""The fields that chat and text completions share: sampling, stopping, choices, form, streaming.

What a field means stands under it, for the OpenAPI document and docs/api/; a paragraph "Differs:" says from whom.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from engine.sampling import SAMPLING_FIELDS
from server.api.common.fields import INT64, Fields, tag_of
from server.api.common.formats import FormFields
from server.core.request import Stop
from server.errors import BadRequestError

MAX_STOPS = 16
MAX_STOP_IDS = 128
MAX_BIASES = 1024
MAX_ALLOWED = 4096
MAX_CHOICES = 128
MAX_SALT = 1000
MAX_TOP_LOGPROBS = 20  # of vLLM, unless its --max-logprobs says otherwise

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenCount = Annotated[int, Field(ge=0, le=INT64)]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
StopField = Annotated[
    Annotated[StopString, Tag("(text)")] | Annotated[list[StopString], Field(max_length=MAX_STOPS), Tag("(list)")],
    Discriminator(tag_of, custom_error_type="stop", custom_error_message="must be a string or a list of strings"),
]


def at_most(items: int) -> BeforeValidator:
    """Refuses a list or an object of more `items` before they are looked at one by one."""

    def check(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > items:
            raise ValueError(f"has {len(value)} items, and at most {items} are taken")
        return value

    return BeforeValidator(check)


LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES), at_most(MAX_BIASES)
]


class StreamOptions(Fields):
    """Options of a streamed response."""

    include_usage: bool | None = None
    """True: the last event before `[DONE]` has the token counts and no choices; `usage` is null in all before it."""
    continuous_usage_stats: bool | None = None
    """True, with `include_usage`: every event has the token counts so far.

    Differs: not in OpenAI's API.
    """


class DrawingFields(Fields):
    """How tokens are drawn and what ends an answer. Fields that are absent or null take the mode's defaults."""

    model: str | None = None
    """A listed model: its own name, or an alias that names the mode too (`NAME:standard`, `NAME:reasoning`).

    Differs: OpenAI and vLLM require it; here it may be left out.
    """
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 is greedy.

    Differs: OpenAI and vLLM default to 1, or vLLM to the checkpoint's generation_config.json.
    """
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draws among the likeliest tokens that hold this share of the probability; 0 is greedy.

    Differs: vLLM refuses 0.
    """
    top_k: Annotated[int, Field(ge=-1, le=INT64)] | None = None
    """Draws among this many of the likeliest tokens; 0 or -1: no limit.

    Differs: not in OpenAI's API.
    """
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draws among the tokens that are at least this likely, as a share of the likeliest one's probability.

    Differs: not in OpenAI's API.
    """
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Makes tokens that were generated before less likely. Where the thinking is closed for the model, the count starts
    afresh with the answer.
    """
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """The same, with each time a token was generated."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    """Above 1, makes tokens less likely that the prompt or the completion has already.

    Differs: not in OpenAI's API; vLLM takes any number above 0.
    """
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    """Of the first choice; each further one has the next."""
    stop: StopField | None = None
    """The answer ends before the first of these texts. Thinking and tool calls are not searched.

    Differs: OpenAI takes 4; vLLM searches the thinking too.
    """
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS)] | None = None
    """The answer ends at the first of these tokens. Thinking is not searched.

    Differs: not in OpenAI's API; vLLM ends the thinking at them too.
    """
    include_stop_str_in_output: bool | None = None
    """True: the stop string or stop token that ended the answer stands at its end.

    Differs: not in OpenAI's API.
    """
    min_tokens: TokenCount | None = None
    """No end of the turn and no stop token before so many tokens, the thinking counted. Not with a grammar.

    Differs: not in OpenAI's API.
    """
    ignore_eos: bool | None = None
    """True: the model's end of the turn does not end the answer; the token limit does. Not with a grammar.

    Differs: not in OpenAI's API.
    """
    logit_bias: LogitBias | None = None
    """From token ids, as strings, to what is added to their logits, in thinking and answer."""
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    """Instead of the mode's; lower runs first. Only where the server was started with `--allow-priority`.

    Differs: not in OpenAI's API; vLLM takes it where it schedules by priority.
    """
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT)] | None = None
    """What is in the prefix cache is found by requests of the same salt only, so that `cached_tokens` tells nobody else
    whether this text was sent. Something that cannot be guessed.

    Differs: not in OpenAI's API.
    """


class SamplingFields(DrawingFields, FormFields):
    """The same with what else chat and text completions share."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """How many choices; 1 if absent."""
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ALLOWED)] | None = None
    """Only these tokens are drawn, in thinking and answer; without the end of the turn among them the token limit ends
    the answer.

    Differs: not in OpenAI's API.
    """
    bad_words: Annotated[list[StopString], Field(max_length=MAX_STOP_IDS)] | None = None
    """Texts whose last token is not drawn after the tokens before it, with a blank before them or without.

    Differs: not in OpenAI's API.
    """
    skip_special_tokens: bool | None = None
    """False: control tokens that say nothing to the server are shown as text instead of left out.

    Differs: not in OpenAI's API.
    """
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """The log-probabilities of the prompt's tokens, with so many of the likeliest in their place. Not in a stream.

    Differs: not in OpenAI's API; vLLM takes -1, for all tokens.
    """
    return_tokens_as_token_ids: bool | None = None
    """True: log-probabilities name tokens as `token_id:NUMBER`.

    Differs: not in OpenAI's API.
    """
    return_token_ids: bool | None = None
    """True: the response has the token ids of the prompt and of all that was generated, as vLLM tells them.

    Differs: not in OpenAI's API.
    """
    stream: bool | None = None
    """True: the response comes as server-sent events."""
    stream_options: StreamOptions | None = None
    """Options of a stream; without `stream` they are refused."""


def includes_usage(asked: SamplingFields) -> bool:
    """Whether a stream ends with its usage; raises BadRequestError for stream options without a stream."""
    if asked.stream_options is None:
        return False
    if not asked.stream:
        raise BadRequestError("stream_options are for streams only: set stream.", param="stream_options")
    return bool(asked.stream_options.include_usage)


def has_continuous_usage(asked: SamplingFields) -> bool:
    """Whether every event of a stream has the token counts so far: as in vLLM, only where its end has them."""
    return includes_usage(asked) and bool(asked.stream_options and asked.stream_options.continuous_usage_stats)


def prompt_logprobs_of(asked: SamplingFields) -> int | None:
    """How many of the likeliest tokens are told in each place of the prompt; raises BadRequestError in a stream."""
    if asked.stream and asked.prompt_logprobs is not None:
        raise BadRequestError("prompt_logprobs is not for streams: leave out stream.", param="prompt_logprobs")
    return asked.prompt_logprobs


def sampling_of(body: DrawingFields) -> dict[str, float]:
    """The fields of engine.sampling that the client set."""
    asked = {name: value for name in SAMPLING_FIELDS if (value := getattr(body, name)) is not None}
    if asked.get("top_k") == -1:  # no limit, as 0
        asked["top_k"] = 0
    if asked.get("top_p") == 0:  # the likeliest token alone holds any share
        del asked["top_p"]
        asked["temperature"] = 0
    return asked


def stop_of(body: DrawingFields) -> Stop:
    """What ends the answer."""
    return Stop(
        texts=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        token_ids=tuple(body.stop_token_ids or ()),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        is_shown=bool(body.include_stop_str_in_output),
    )


def logit_bias_of(body: DrawingFields) -> dict[int, float]:
    """By token id; raises BadRequestError for a key that is none."""
    biases = body.logit_bias
    if not biases:
        return {}
    if any(not (key.isascii() and key.isdigit() and len(key) < 10) for key in biases):
        raise BadRequestError("logit_bias: the keys must be token ids.", param="logit_bias")
    return {int(key): bias for key, bias in biases.items()}
