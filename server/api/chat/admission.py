"""From a checked chat body to a request of the core."""

from server.api.chat.body import ChatRequest
from server.api.common.conversation import conversation_of, tool_set_of
from server.api.common.formats import forms_in
from server.api.common.sampling import logit_bias_of, prompt_logprobs_of, sampling_of, stop_of
from server.api.common.thinking import mode_wish, shows_thinking
from server.core.request import Received, Request, Shown, new_id
from server.errors import BadRequestError


def chat_request(asked: ChatRequest, received: Received) -> Request:
    """What is asked. Raises BadRequestError where fields contradict each other."""
    max_tokens, field = _limit(asked)
    shown = _shown(asked)
    tools = tool_set_of(asked)
    return Request(
        id=new_id("chatcmpl"),
        prompt=conversation_of(asked, tools),
        tool_use=tools.use,
        received=received,
        model=asked.model,
        mode=mode_wish(asked),
        max_tokens=max_tokens,
        sampling=sampling_of(asked),
        seed=asked.seed,
        logit_bias=logit_bias_of(asked),
        allowed_token_ids=asked.allowed_token_ids,
        bad_words=asked.bad_words or (),
        stop=stop_of(asked),
        n=asked.n or 1,
        forms=forms_in(asked),
        shown=shown,
        priority=asked.priority,
        cache_salt=asked.cache_salt or "",
        streamed=bool(asked.stream),
        names={**tools.names, "max_tokens": field, **({"logprobs": "top_logprobs"} if asked.top_logprobs else {})},
    )


def _limit(asked: ChatRequest) -> tuple[int | None, str]:
    """The client's token limit and the field that it came in."""
    new, old = asked.max_completion_tokens, asked.max_tokens
    if new is not None and old is not None and new != old:
        raise BadRequestError(
            f"max_completion_tokens is {new} and max_tokens {old}: send only one of them.", param="max_tokens"
        )
    return (old, "max_tokens") if new is None else (new, "max_completion_tokens")


def _shown(asked: ChatRequest) -> Shown:
    if not asked.logprobs:
        for name, value in (("top_logprobs", asked.top_logprobs), ("reasoning_logprobs", asked.reasoning_logprobs)):
            if value:
                raise BadRequestError(f"{name} needs logprobs: set it to true.", param=name)
    return Shown(
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        prompt_logprobs=prompt_logprobs_of(asked),
        reasoning_logprobs=bool(asked.reasoning_logprobs),
        tokens_as_ids=bool(asked.return_tokens_as_token_ids),
        token_ids=bool(asked.return_token_ids),
        control_tokens=asked.skip_special_tokens is False,
        thinking=shows_thinking(asked),
    )
