"""`/tokenize` and `/detokenize`: what the engine would be given, and the text of its tokens."""

from server.api.chat.admission import chat_prompt, mode_for
from server.api.tokens.body import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest
from server.core.answer_format import named_tools
from server.core.prompts import encode_prompts
from server.core.sampling import known_ids
from server.errors import JsonObject
from server.modes.dialects import thinking_wish
from server.offload import read_long
from server.serving import Serving


async def tokenize(asked: TokenizeTextRequest | TokenizeChatRequest, size: int, serving: Serving) -> JsonObject:
    """VLLM's response; `size` is the body's, in bytes. Raises ApiError."""
    if isinstance(asked, TokenizeTextRequest):
        mode_for(asked.model, [], serving)
        (ids,) = await encode_prompts([asked.prompt], serving)
    else:
        mode = mode_for(asked.model, thinking_wish(asked).modes, serving)
        ids = await chat_prompt(asked, mode, size, serving)
        named_tools(asked)  # refuses what a completion would refuse
    token_strs = None
    if asked.return_token_strs:
        token_strs = await read_long(lambda: list(map(serving.fmt.vocabulary.token_text, ids)), len(ids))
    context = serving.admit().max_context
    return {"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": token_strs}


async def detokenize(asked: DetokenizeRequest, serving: Serving) -> JsonObject:
    """VLLM's response; raises ApiError."""
    mode_for(asked.model, [], serving)
    ids = known_ids(asked.tokens, "tokens", serving)
    return {"prompt": await read_long(lambda: serving.fmt.decode(ids, show_control=True), len(ids))}
