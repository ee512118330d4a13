"""The routes about the server itself: models, health, metrics, versions."""

from http import HTTPStatus
from importlib.metadata import version

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.common.openapi import Api, answers_of, text_answer
from server.api.service.models import VERSION_HEADER, anthropic_model, anthropic_models, model_of, models_of
from server.api.service.schema import (
    Alive,
    AnthropicModel,
    AnthropicModels,
    Healthy,
    Model,
    Models,
    Unhealthy,
    Versions,
)
from server.core.admission import find_model
from server.errors import ApiError
from server.http.reading import serving_of
from server.http.responses import json_response

router = APIRouter()


@router.get("/v1/models", response_class=Response, responses=answers_of(Models, other=AnthropicModels))
async def models(request: Request) -> Response:
    """The model under its own name and under one alias for each mode; with `anthropic-version` in Anthropic's shape."""
    serving = serving_of(request)
    shape = anthropic_models if VERSION_HEADER in request.headers else models_of
    return json_response(shape(serving))


@router.get("/v1/models/{name:path}", response_class=Response, responses=answers_of(Model, 404, other=AnthropicModel))
async def model(request: Request, name: str) -> Response:
    """One of them."""
    serving = serving_of(request)
    served = find_model(name, serving)
    shape = anthropic_model if VERSION_HEADER in request.headers else model_of
    return json_response(shape(name, served, serving))


@router.get("/health", response_class=Response, responses=answers_of(Healthy, 503, problem=Unhealthy, needs_key=False))
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


@router.get("/live", response_class=Response, responses=answers_of(Alive))
async def live(_request: Request) -> Response:
    """200 as long as the process turns: also while the model loads, without an engine, and while the server ends."""
    return json_response({"status": "alive"})


@router.get("/metrics", response_class=Response, responses=text_answer("text/plain"))
async def metrics(request: Request) -> Response:
    """Prometheus's text format."""
    return Response(serving_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", response_class=Response, responses=answers_of(Versions))
async def versions(request: Request) -> Response:
    """The versions of this server and, once it is up, of the engine."""
    ready = serving_of(request).engine.ready
    return json_response({"version": version("twogear"), "engine": None if ready is None else ready.engine_version})


API = Api(
    router=router,
    answers=(Model, Models, AnthropicModel, AnthropicModels, Alive, Healthy, Unhealthy, Versions),
    access={"/health": "open", "/live": "open", "/metrics": "metrics"},
)
