"""The routes of Anthropic's messages: read, admit, run, answer."""

from fastapi import APIRouter, Request, Response

from server.api.common.answering import complete, rejections, stream
from server.api.common.control_body import ControlRequest, read_control_request
from server.api.common.openapi import Api, answers_of, body_of
from server.api.common.rendered import RenderedRequest, rendered
from server.api.messages.admission import count_tokens_request, messages_request
from server.api.messages.answer import MessageAnswer, MessageEvents, MessageResponse
from server.api.messages.body import (
    CountTokensRequest,
    MessagesRequest,
    read_count_tokens_request,
    read_messages_request,
)
from server.api.messages.errors import ERRORS
from server.api.messages.schema import AnthropicError, AnthropicMessage, MessageControl, MessageEvent, TokensCount
from server.core.admission import admit, prompt_ids
from server.core.run import Run
from server.http.reading import read, serving_of
from server.http.responses import json_response
from server.http.sse import EventStream, until_disconnect
from server.offload import read_long

router = APIRouter()


@router.post(
    "/v1/messages",
    openapi_extra=body_of(MessagesRequest),
    response_class=Response,
    responses=answers_of(AnthropicMessage, 400, 404, 413, 415, 503, event=MessageEvent, problem=AnthropicError),
)
async def messages(request: Request) -> Response:
    """Answers a conversation, in the mode that the request asks for."""
    serving = serving_of(request)
    with rejections(serving):
        asked, received = await read(request, read_messages_request)
        plan = await admit(await read_long(lambda: messages_request(asked, received), received.size), serving)
    run = Run(plan, serving)
    answer = MessageAnswer(run, asked, plan.model)
    if asked.stream:
        return EventStream(stream(run.pieces(), MessageEvents(answer)))
    work = complete(run.pieces(), MessageResponse(answer))
    return json_response(await until_disconnect(request.receive, work))


@router.post(
    "/v1/messages/count_tokens",
    openapi_extra=body_of(CountTokensRequest),
    response_class=Response,
    responses=answers_of(TokensCount, 400, 404, 413, 415, problem=AnthropicError),
)
async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of a message has."""
    serving = serving_of(request)
    asked, received = await read(request, read_count_tokens_request)
    counted = await read_long(lambda: count_tokens_request(asked, received), received.size)
    return json_response({"input_tokens": len(await prompt_ids(counted, serving))})


@router.post(
    "/v1/messages/render",
    openapi_extra=body_of(MessagesRequest),
    response_class=Response,
    responses=answers_of(RenderedRequest, 400, 404, 413, 415, 503, problem=AnthropicError),
)
async def render(request: Request) -> Response:
    """What the engine would be given for a message, which is not run."""
    serving = serving_of(request)
    body, received = await read(request, read_messages_request)
    asked = await read_long(lambda: messages_request(body, received), received.size)
    (answer,) = await rendered(await admit(asked, serving), asked)
    return json_response(answer)


@router.post(
    "/v1/messages/{message_id}/control",
    openapi_extra=body_of(ControlRequest),
    response_class=Response,
    responses=answers_of(MessageControl, 400, 404, 413, 415, problem=AnthropicError),
)
async def control(request: Request, message_id: str) -> Response:
    """Closes the thinking of a running message."""
    asked, received = await read(request, read_control_request)
    closed = bool(serving_of(request).end_thinking(message_id, received.caller))
    return json_response({"id": message_id, "type": "message_control", "action": asked.action, "closed": closed})


API = Api(
    router=router,
    bodies=(MessagesRequest, CountTokensRequest, ControlRequest),
    answers=(AnthropicMessage, MessageEvent, TokensCount, MessageControl, AnthropicError, RenderedRequest),
    errors=ERRORS,
    access={"/v1/messages/{message_id}/control": "control"},
)
