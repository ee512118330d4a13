"""`…/render`, as vLLM has it: what the engine would be given for a request, which is not run.

Routers that know the pages of several engines ask for it, since only a prompt's ids say which pages it would find.
"""

from pydantic import Field, RootModel

from server.api.common.sampling import StreamOptions
from server.api.common.schema import Answer, Count
from server.core.plan import ChoicePlan, Plan
from server.core.request import Request
from server.errors import JsonObject
from server.http.responses import Encoded, encoded
from server.offload import read_long


class RenderedGrammar(Answer):
    """What the answer has to fit."""

    grammar: str
    """In llguidance's Lark dialect; `<[n]>` in it is the token n."""


class RenderedSampling(Answer):
    """How tokens are drawn, in the words of vLLM's SamplingParams."""

    n: Count
    """How many choices there are; 1 where the likeliest token is taken, since vLLM takes no more of what is alike."""
    temperature: float
    """0: the likeliest token is taken."""
    top_p: float
    """Of the likeliest tokens, those that together have this share."""
    top_k: Count
    """Of so many of the likeliest; 0: of all."""
    min_p: float
    """Of those that have this share of the likeliest one's probability."""
    presence_penalty: float
    """Of tokens that are in the answer."""
    frequency_penalty: float
    """Of tokens by how often they are in the answer."""
    repetition_penalty: float
    """Of tokens that are in prompt or answer."""
    max_tokens: Count
    """The limit of all that is generated, thinking included."""
    thinking_token_budget: Count | None = None
    """How many tokens thinking may have, the wrap-up among them; absent where none is open."""
    min_tokens: Count
    """The least before any end."""
    seed: int | None = None
    """Where the client named one."""
    stop: list[str]
    """Texts that end an answer."""
    stop_token_ids: list[int]
    """Tokens that end it, beside those of the model."""
    include_stop_str_in_output: bool
    """Whether the text that ended an answer stands at its end."""
    ignore_eos: bool
    """Whether the model's own end is none."""
    logit_bias: dict[str, float] | None = None
    """What is added to the logits of tokens."""
    allowed_token_ids: list[int] | None = None
    """The tokens that may be drawn, where not all may."""
    bad_words: list[str]
    """Texts that are not written."""
    logprobs: Count | None = None
    """How many of the likeliest tokens are told with each."""
    prompt_logprobs: Count | None = None
    """The same of the prompt's tokens."""
    structured_outputs: RenderedGrammar | None = None
    """What binds the answer; the thinking before it is free."""
    skip_special_tokens: bool
    """Whether tokens that say nothing are left out of the text."""


class RenderedRequest(Answer):
    """What the engine would be given: vLLM's GenerateRequest."""

    request_id: str
    """Of a response that nobody makes."""
    token_ids: list[int]
    """The prompt."""
    sampling_params: RenderedSampling
    """How its answer would be drawn."""
    model: str
    """The model's own name, or the adapter's. The mode is in all the rest."""
    reasoning_ended: bool
    """False: the prompt ends in open thinking."""
    stream: bool
    """As asked for."""
    stream_options: StreamOptions | None
    """As asked for."""
    cache_salt: str | None = Field(max_length=1024)
    """What the engine keeps the prompt's pages apart by; of `--isolate-keys`, too."""
    priority: int
    """Lower runs first."""
    features: None
    """There are no images."""
    token_offsets: None
    """They are not told."""


class RenderedRequests(RootModel[list[RenderedRequest]]):
    """What the engine would be given for each prompt."""


async def rendered(plan: Plan, asked: Request, options: StreamOptions | None = None) -> list[Encoded]:
    """What the engine would be given for each prompt of `plan`, which was made of `asked`."""
    firsts = plan.choices[:: asked.n]
    ids = [plan.id] if len(firsts) == 1 else [f"{plan.id}-{number}" for number in range(len(firsts))]
    return await read_long(
        lambda: [
            encoded(_rendered(name, choice.parts[0], plan, asked, options))
            for name, choice in zip(ids, firsts, strict=True)
        ],
        plan.prompt_tokens,
    )


def _rendered(name: str, choice: ChoicePlan, plan: Plan, asked: Request, options: StreamOptions | None) -> JsonObject:
    return {
        "request_id": name,
        "token_ids": choice.prompt_ids,
        "sampling_params": {key: value for key, value in _sampling(choice, plan, asked).items() if value is not None},
        "model": plan.model,
        "reasoning_ended": choice.thinking is None,
        "stream": asked.streamed,
        "stream_options": None if options is None else options.model_dump(exclude_none=True),
        "cache_salt": plan.cache_salt or None,
        "priority": plan.queues[0].priority,
        "features": None,
        "token_offsets": None,
    }


def _sampling(choice: ChoicePlan, plan: Plan, asked: Request) -> JsonObject:
    """By the names of vLLM; None for what is not set."""
    sampling, thinking, bias = choice.sampling, choice.thinking, choice.sampling.logit_bias
    return {
        "n": asked.n if sampling.temperature else 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "max_tokens": sampling.max_tokens,
        "thinking_token_budget": None if thinking is None else thinking.max_tokens + len(thinking.wrap_up),
        "min_tokens": sampling.min_tokens,
        "seed": sampling.seed,
        "stop": list(plan.stop.texts),
        "stop_token_ids": list(sampling.stop_token_ids),
        "include_stop_str_in_output": plan.stop.is_shown,
        "ignore_eos": sampling.ignore_eos,
        "logit_bias": None if bias is None else {str(token): value for token, value in bias.items()},
        "allowed_token_ids": sampling.allowed_token_ids,
        "bad_words": list(asked.bad_words),
        "logprobs": sampling.logprobs,
        "prompt_logprobs": sampling.prompt_logprobs,
        "structured_outputs": None if sampling.grammar is None else {"grammar": sampling.grammar},
        "skip_special_tokens": not plan.shows_control_tokens,
    }
