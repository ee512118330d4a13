"""The routes of `/tokenize` and `/detokenize`."""

from fastapi import APIRouter, Request, Response

from server.api.common.openapi import Api, answers_of, body_of
from server.api.tokens.admission import tokenize_request
from server.api.tokens.answer import detokenize, tokenize
from server.api.tokens.body import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
    read_detokenize_request,
    read_tokenize_request,
)
from server.api.tokens.schema import Detokenized, Tokenized
from server.http.reading import read, serving_of
from server.http.responses import json_response

router = APIRouter()


@router.post(
    "/tokenize",
    openapi_extra=body_of(TokenizeTextRequest, TokenizeChatRequest),
    response_class=Response,
    responses=answers_of(Tokenized, 400, 404, 413, 415, 503),
)
async def tokenize_text(request: Request) -> Response:
    """The token ids of a text, or of the prompt that a conversation makes."""
    serving = serving_of(request)
    asked, received = await read(request, read_tokenize_request)
    answer = await tokenize(tokenize_request(asked, received), serving, with_texts=bool(asked.return_token_strs))
    return json_response(answer)


@router.post(
    "/detokenize",
    openapi_extra=body_of(DetokenizeRequest),
    response_class=Response,
    responses=answers_of(Detokenized, 400, 404, 413, 415),
)
async def detokenize_ids(request: Request) -> Response:
    """The text of token ids."""
    serving = serving_of(request)
    asked, _ = await read(request, read_detokenize_request)
    return json_response(await detokenize(asked, serving))


API = Api(
    router=router,
    bodies=(TokenizeTextRequest, TokenizeChatRequest, DetokenizeRequest),
    answers=(Tokenized, Detokenized),
)
