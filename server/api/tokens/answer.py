"""`/tokenize` and `/detokenize`: what the engine would be given, and the text of its tokens."""

from server.api.tokens.body import DetokenizeRequest
from server.core.admission import find_mode, prompt_ids
from server.core.request import Request
from server.core.serving import Serving
from server.core.token_ids import known_ids
from server.errors import JsonObject
from server.offload import read_long


async def tokenize(request: Request, serving: Serving, *, with_texts: bool) -> JsonObject:
    """VLLM's response, `with_texts` of the tokens. Raises ApiError for what a completion would refuse, too."""
    ids = await prompt_ids(request, serving)
    token_strs = None
    if with_texts:
        token_strs = await read_long(lambda: list(map(serving.fmt.vocabulary.token_text, ids)), len(ids))
    context = serving.admit().max_context
    return {"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": token_strs}


async def detokenize(asked: DetokenizeRequest, serving: Serving) -> JsonObject:
    """VLLM's response; raises ApiError."""
    find_mode(asked.model, serving)
    ids = known_ids(asked.tokens, "tokens", serving)
    return {"prompt": await read_long(lambda: serving.fmt.decode(ids, show_control=True), len(ids))}
