"""The routes of chat completions: read, admit, run, answer."""

from fastapi import APIRouter, Request, Response

from server.access.quota import Caller
from server.api.chat.admission import chat_request
from server.api.chat.answer import ChatResponse, ChunkWriter
from server.api.chat.body import ChatRequest, read_chat_request
from server.api.chat.schema import ChatCompletion, ChatCompletionChunk, ControlResult
from server.api.common.answering import complete, rejections, stream
from server.api.common.control_body import (
    ControlRequest,
    NamedControlRequest,
    read_control_request,
    read_named_control_request,
)
from server.api.common.conversation import custom_tools_of
from server.api.common.openapi import Api, answers_of, body_of
from server.api.common.rendered import RenderedRequest, rendered
from server.api.common.sampling import has_continuous_usage, includes_usage
from server.core.admission import admit
from server.core.run import Run
from server.core.serving import Serving
from server.http.reading import read, serving_of
from server.http.responses import json_response
from server.http.sse import EventStream, until_disconnect

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    openapi_extra=body_of(ChatRequest),
    response_class=Response,
    responses=answers_of(ChatCompletion, 400, 404, 413, 415, 503, event=ChatCompletionChunk),
)
async def chat_completions(request: Request) -> Response:
    """Answers a conversation, in the mode that the request asks for."""
    serving = serving_of(request)
    with rejections(serving):
        asked, received = await read(request, read_chat_request)
        include_usage = includes_usage(asked)
        plan = await admit(chat_request(asked, received), serving)
    run, streams = Run(plan, serving), asked.stream
    continuous, custom = has_continuous_usage(asked), custom_tools_of(asked)
    del asked  # which may take much, while the answer may take long
    if streams:
        writer = ChunkWriter(
            plan, run.choices, serving, custom, include_usage=include_usage, continuous_usage=continuous
        )
        return EventStream(stream(run.pieces(), writer))
    work = complete(run.pieces(), ChatResponse(plan, run.choices, serving, custom))
    return json_response(await until_disconnect(request.receive, work))


@router.post(
    "/v1/chat/completions/render",
    openapi_extra=body_of(ChatRequest),
    response_class=Response,
    responses=answers_of(RenderedRequest, 400, 404, 413, 415, 503),
)
async def render(request: Request) -> Response:
    """What the engine would be given for a chat completion, which is not run."""
    serving = serving_of(request)
    body, received = await read(request, read_chat_request)
    includes_usage(body)
    asked = chat_request(body, received)
    (answer,) = await rendered(await admit(asked, serving), asked, body.stream_options)
    return json_response(answer)


@router.post(
    "/v1/chat/completions/control",
    openapi_extra=body_of(NamedControlRequest),
    response_class=Response,
    responses=answers_of(ControlResult, 400, 404, 413, 415),
)
async def named_control(request: Request) -> Response:
    """The same as the next, with the completion's id in the body: llama.cpp's way."""
    serving = serving_of(request)
    asked, received = await read(request, read_named_control_request)
    return _end_thinking(asked.id, asked.action, received.caller, serving)


@router.post(
    "/v1/chat/completions/{completion_id}/control",
    openapi_extra=body_of(ControlRequest),
    response_class=Response,
    responses=answers_of(ControlResult, 400, 404, 413, 415),
)
async def control(request: Request, completion_id: str) -> Response:
    """Closes the thinking of a running completion; tells which of its choices were thinking."""
    serving = serving_of(request)
    asked, received = await read(request, read_control_request)
    return _end_thinking(completion_id, asked.action, received.caller, serving)


def _end_thinking(completion_id: str, action: str, caller: Caller, serving: Serving) -> Response:
    choices = serving.end_thinking(completion_id, caller)
    head = {"id": completion_id, "object": "chat.completion.control", "action": action}
    return json_response({**head, "choices": choices})


API = Api(
    router=router,
    bodies=(ChatRequest, ControlRequest, NamedControlRequest),
    answers=(ChatCompletion, ChatCompletionChunk, ControlResult, RenderedRequest),
    access={
        "/v1/chat/completions/control": "control",
        "/v1/chat/completions/{completion_id}/control": "control",
    },
)
