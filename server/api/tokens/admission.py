"""From a checked body of `/tokenize` to a request of the core, of which only the prompt is made."""

from server.api.common.conversation import conversation_of, tool_set_of
from server.api.common.thinking import mode_wish
from server.api.tokens.body import TokenizeChatRequest, TokenizeTextRequest
from server.core.request import Received, Request, Texts, new_id


def tokenize_request(asked: TokenizeTextRequest | TokenizeChatRequest, received: Received) -> Request:
    """What is asked. Raises BadRequestError where fields contradict each other."""
    if isinstance(asked, TokenizeTextRequest):
        return Request(id=new_id("tokenize"), prompt=Texts([asked.prompt]), received=received, model=asked.model)
    tools = tool_set_of(asked)
    return Request(
        id=new_id("tokenize"),
        prompt=conversation_of(asked, tools),
        received=received,
        model=asked.model,
        mode=mode_wish(asked),
        cache_salt=asked.cache_salt or "",
        names=tools.names,
    )
