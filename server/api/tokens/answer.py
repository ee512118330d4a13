"""`/tokenize` and `/detokenize`: what the engine would be given, and the text of its tokens."""

from server.api.tokens.body import DetokenizeRequest
from server.core.admission import find_model, prompt_ids
from server.core.request import Request
from server.core.serving import Serving
from server.core.token_ids import known_ids
from server.http.responses import Encoded, encoded, encoded_list
from server.offload import read_long


async def tokenize(request: Request, serving: Serving, *, with_texts: bool) -> Encoded:
    """VLLM's response, `with_texts` of the tokens. Raises ApiError for what a completion would refuse, too."""
    ids = await prompt_ids(request, serving)
    context = serving.admit().max_context

    def answer() -> Encoded:
        token_strs = encoded_list(ids, serving.fmt.vocabulary.token_text) if with_texts else None
        tokens = encoded_list(ids)
        return encoded({"count": len(ids), "max_model_len": context, "tokens": tokens, "token_strs": token_strs})

    return await read_long(answer, len(ids))


async def detokenize(asked: DetokenizeRequest, serving: Serving) -> Encoded:
    """VLLM's response; raises ApiError."""
    find_model(asked.model, serving)

    def answer() -> Encoded:
        ids = known_ids(asked.tokens, "tokens", serving)
        return encoded({"prompt": serving.fmt.decode(ids, show_control=True)})

    return await read_long(answer, len(asked.tokens))
