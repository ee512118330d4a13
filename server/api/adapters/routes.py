"""The routes of `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`."""

import logging

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from server.api.adapters.body import LoadAdapterRequest, UnloadAdapterRequest, read_load_request, read_unload_request
from server.api.common.openapi import Api, body_of, errors_of, text_answer
from server.core.serving import Serving
from server.engine_client import EngineUnavailable
from server.errors import ForbiddenError
from server.http.reading import read, serving_of
from server.modes.resolve import model_names

logger = logging.getLogger("twogear.server")
router = APIRouter()


@router.post(
    "/v1/load_lora_adapter",
    openapi_extra=body_of(LoadAdapterRequest),
    response_class=Response,
    responses={**text_answer("text/plain"), **errors_of(400, 401, 403, 413, 415, 503)},
)
async def load_lora_adapter(request: Request) -> Response:
    """Serves a LoRA adapter as a model of its own, with an alias for each mode."""
    serving = serving_of(request)
    _check_allowed(serving)
    asked, _ = await read(request, read_load_request)
    name = asked.lora_name
    try:
        await serving.adapters.load(name, asked.lora_path, _others(name, serving), replaces=bool(asked.load_inplace))
    except EngineUnavailable as error:
        raise serving.unavailable(str(error)) from error
    logger.warning("The adapter %r is served, from %s.", name, asked.lora_path)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@router.post(
    "/v1/unload_lora_adapter",
    openapi_extra=body_of(UnloadAdapterRequest),
    response_class=Response,
    responses={**text_answer("text/plain"), **errors_of(400, 401, 403, 404, 413, 415)},
)
async def unload_lora_adapter(request: Request) -> Response:
    """Serves a LoRA adapter no more; what runs with it goes on."""
    serving = serving_of(request)
    _check_allowed(serving)
    asked, _ = await read(request, read_unload_request)
    await serving.adapters.unload(asked.lora_name, serving.settings.model_name)
    logger.warning("The adapter %r is served no more.", asked.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")


def _check_allowed(serving: Serving) -> None:
    if not serving.settings.allow_lora_updates:
        raise ForbiddenError(
            "Adapters are not loaded by requests here: the server was started without --allow-runtime-lora-updating."
        )


def _others(name: str, serving: Serving) -> set[str]:
    """The names of all models but the adapter `name` itself, and those that it would take away from them."""
    served = [serving.settings.model_name, *(other for other in serving.adapters.by_name if other != name)]
    listed = {alias for one in served for alias in model_names(one, serving.modes)}
    aliases = set(model_names(name, serving.modes))
    return {*listed, name} if aliases & listed else listed


API = Api(
    router=router,
    bodies=(LoadAdapterRequest, UnloadAdapterRequest),
    answers=(),
    access={"/v1/load_lora_adapter": "admin", "/v1/unload_lora_adapter": "admin"},
)
