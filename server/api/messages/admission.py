"""From a checked body of Anthropic's to a request of the core."""

from server.api.common.thinking import mode_wish, thinking_type
from server.api.messages.body import CountTokensRequest, MessagesRequest, ToolChoice
from server.api.messages.conversation import conversation_of
from server.core.request import Form, JsonForm, NamedTool, Received, Request, Stop, ToolUse, new_id
from server.modes.thinking import ModeWish

SAMPLING = ("temperature", "top_p", "top_k")
LONGEST_NAME = 128  # of a tool, as Anthropic says


def messages_request(asked: MessagesRequest, received: Received) -> Request:
    """What is asked. Raises BadRequestError where fields contradict each other."""
    conversation, names = conversation_of(asked)
    return Request(
        id=new_id("msg", "_"),
        prompt=conversation,
        tool_use=_tool_use(asked.tool_choice),
        received=received,
        model=asked.model,
        mode=_mode(asked),
        max_tokens=asked.max_tokens,
        fits_to_context=True,
        sampling=_sampling(asked),
        stop=Stop(texts=tuple(asked.stop_sequences or ())),
        forms=_forms(asked),
        cache_salt=asked.cache_salt or "",
        streamed=bool(asked.stream),
        names=names,
    )


def count_tokens_request(asked: CountTokensRequest, received: Received) -> Request:
    """The same, of which only the prompt is made."""
    conversation, names = conversation_of(asked)
    return Request(
        id=new_id("count", "_"),
        prompt=conversation,
        tool_use=_tool_use(asked.tool_choice),
        received=received,
        model=asked.model,
        mode=_mode(asked),
        cache_salt=asked.cache_salt or "",
        names=names,
    )


def _mode(asked: CountTokensRequest) -> ModeWish:
    """An effort bounds the thinking only where nothing says how many tokens it may have."""
    budgets = ["thinking_token_budget", "thinking.budget_tokens"]
    wish = mode_wish(asked, {"reasoning_mode": str, "thinking.type": thinking_type}, budgets)
    return wish if wish.budgets else wish._replace(budgets=mode_wish(asked, {}, ["output_config.effort"]).budgets)


def _sampling(asked: MessagesRequest) -> dict[str, float]:
    sampling = {name: value for name in SAMPLING if (value := getattr(asked, name)) is not None}
    if sampling.get("top_k") == -1:  # no limit, as 0
        sampling["top_k"] = 0
    if sampling.get("top_p") == 0:  # the likeliest token alone holds any share
        del sampling["top_p"]
        sampling["temperature"] = 0.0
    return sampling


def _tool_use(choice: ToolChoice | None) -> ToolUse:
    if choice is None:
        return ToolUse(longest_name=LONGEST_NAME)
    parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "tool":
            return ToolUse(NamedTool(choice.name or ""), parallel, LONGEST_NAME)
        case "any":
            return ToolUse("required", parallel, LONGEST_NAME)
        case kind:
            return ToolUse(kind, parallel, LONGEST_NAME)


def _forms(asked: MessagesRequest) -> tuple[Form, ...]:
    """What binds the answer, under the newer name or the older; the same under both is said once."""
    new, old = None if asked.output_config is None else asked.output_config.format, asked.output_format
    fields = {"output_config.format.schema": new, "output_format.schema": None if old == new else old}
    return tuple(JsonForm(field, form.schema_) for field, form in fields.items() if form is not None)
