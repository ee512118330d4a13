"""From a checked body of `/tokenize` to a request of the core, of which only the prompt is made."""

from server.api.common.conversation import conversation_of
from server.api.common.thinking import mode_wish
from server.api.tokens.body import TokenizeChatRequest, TokenizeTextRequest
from server.core.request import Request, Texts, new_id


def tokenize_request(asked: TokenizeTextRequest | TokenizeChatRequest, size: int) -> Request:
    """What is asked; `size` is the body's, in bytes. Raises BadRequestError where fields contradict each other."""
    if isinstance(asked, TokenizeTextRequest):
        return Request(id=new_id("tokenize"), prompt=Texts([asked.prompt]), size=size, model=asked.model)
    return Request(
        id=new_id("tokenize"), prompt=conversation_of(asked), size=size, model=asked.model, mode=mode_wish(asked)
    )
