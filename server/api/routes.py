"""The HTTP routes, each a few lines: read, admit, run, answer."""

from http import HTTPStatus
from importlib.metadata import version

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api import answers
from server.api.chat.admission import admit_chat, mode_for
from server.api.chat.body import ChatRequest, read_chat_request
from server.api.chat.control_body import ControlRequest, read_control_request
from server.api.chat.response import complete, stream
from server.api.completions.admission import admit_completion
from server.api.completions.body import CompletionRequest, read_completion_request
from server.api.completions.response import complete_text, stream_text
from server.api.openapi import answers_of, body_of, text_answer
from server.api.tokens.body import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
    read_detokenize_request,
    read_tokenize_request,
)
from server.api.tokens.response import detokenize, tokenize
from server.core.sampling import includes_usage
from server.errors import ApiError, JsonObject, json_response
from server.http.reading import read, serving_of
from server.http.sse import EventStream, until_disconnect
from server.modes.mode import Mode
from server.modes.resolve import model_names
from server.serving import Serving

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    openapi_extra=body_of(ChatRequest),
    response_class=Response,
    responses=answers_of(answers.ChatCompletion, 400, 404, 413, 415, 503, event=answers.ChatCompletionChunk),
)
async def chat_completions(request: Request) -> Response:
    """Answers a conversation, in the mode that the request asks for."""
    serving = serving_of(request)
    try:
        asked, size = await read(request, read_chat_request)
        include_usage = includes_usage(asked)
        job = await admit_chat(asked, size, serving)
    except ApiError:
        serving.metrics.rejected()
        raise
    if asked.stream:
        return EventStream(stream(job, serving, include_usage=include_usage))
    answer = await until_disconnect(request.receive, complete(job, serving))
    return json_response(answer)


@router.post(
    "/v1/chat/completions/{completion_id}/control",
    openapi_extra=body_of(ControlRequest),
    response_class=Response,
    responses=answers_of(answers.ControlResult, 400, 404, 413, 415),
)
async def control(request: Request, completion_id: str) -> Response:
    """Closes the thinking of a running completion; tells which of its choices were thinking."""
    serving = serving_of(request)
    asked, _ = await read(request, read_control_request)
    choices = serving.end_thinking(completion_id)
    head = {"id": completion_id, "object": "chat.completion.control", "action": asked.action}
    return json_response({**head, "choices": choices})


@router.post(
    "/v1/completions",
    openapi_extra=body_of(CompletionRequest),
    response_class=Response,
    responses=answers_of(answers.TextCompletion, 400, 404, 413, 415, 503, event=answers.TextCompletion),
)
async def completions(request: Request) -> Response:
    """Goes on with a text or with token ids."""
    serving = serving_of(request)
    try:
        asked, _ = await read(request, read_completion_request)
        include_usage = includes_usage(asked)
        job = await admit_completion(asked, serving)
    except ApiError:
        serving.metrics.rejected()
        raise
    if asked.stream:
        return EventStream(stream_text(job, serving, include_usage=include_usage))
    return json_response(await until_disconnect(request.receive, complete_text(job, serving)))


@router.post(
    "/tokenize",
    openapi_extra=body_of(TokenizeTextRequest, TokenizeChatRequest),
    response_class=Response,
    responses=answers_of(answers.Tokenized, 400, 404, 413, 415, 503),
)
async def tokenize_text(request: Request) -> Response:
    """The token ids of a text, or of the prompt that a conversation makes."""
    serving = serving_of(request)
    asked, size = await read(request, read_tokenize_request)
    return json_response(await tokenize(asked, size, serving))


@router.post(
    "/detokenize",
    openapi_extra=body_of(DetokenizeRequest),
    response_class=Response,
    responses=answers_of(answers.Detokenized, 400, 404, 413, 415),
)
async def detokenize_ids(request: Request) -> Response:
    """The text of token ids."""
    serving = serving_of(request)
    asked, _ = await read(request, read_detokenize_request)
    return json_response(await detokenize(asked, serving))


@router.get("/v1/models", response_class=Response, responses=answers_of(answers.Models))
async def models(request: Request) -> Response:
    """The model under its own name and under one alias for each mode."""
    serving = serving_of(request)
    names = model_names(serving.settings.model_name, serving.modes)
    return json_response({"object": "list", "data": [_model(name, mode, serving) for name, mode in names.items()]})


@router.get("/v1/models/{name:path}", response_class=Response, responses=answers_of(answers.Model, 404))
async def model(request: Request, name: str) -> Response:
    """One of them."""
    serving = serving_of(request)
    mode = mode_for(name, [], serving)
    return json_response(_model(name, mode, serving))


@router.get("/health", response_class=Response, responses=answers_of(answers.Healthy, 503, problem=answers.Unhealthy))
async def health(request: Request) -> Response:
    """200 once requests are taken; 503 while the model loads, without an engine, or while the server shuts down."""
    serving = serving_of(request)
    status = serving.engine.status
    try:
        serving.admit()
    except ApiError as error:
        state = "draining" if serving.draining else status.state
        body = {"status": state, "progress": round(status.fraction, 3), "detail": status.detail, **error.body()}
        return json_response(body, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(error.retry_after)})
    return json_response({"status": "ok"})


@router.get("/metrics", response_class=Response, responses=text_answer("text/plain"))
async def metrics(request: Request) -> Response:
    """Prometheus's text format."""
    return Response(serving_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", response_class=Response, responses=answers_of(answers.Versions))
async def versions(request: Request) -> Response:
    """The versions of this server and, once it is up, of the engine."""
    ready = serving_of(request).engine.ready
    return json_response({"version": version("twogear"), "engine": None if ready is None else ready.engine_version})


def _model(name: str, mode: Mode, serving: Serving) -> JsonObject:
    ready = serving.engine.ready
    return {
        "id": name,
        "object": "model",
        "created": serving.started,
        "owned_by": "twogear",
        "max_model_len": None if ready is None else ready.max_context,
        "reasoning_mode": mode.name,
        "kind": "thinking" if mode.thinks else "direct",
    }
