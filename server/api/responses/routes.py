"""The routes of responses: read, admit, run, answer, and what clients may ask of those that are stored or run."""

import re
from functools import partial

import orjson
from fastapi import APIRouter, Request, Response

from server.api.common.answering import complete, rejections
from server.api.common.answering import stream as streamed
from server.api.common.control_body import ControlRequest, read_control_request
from server.api.common.openapi import Api, answers_of, body_of
from server.api.common.rendered import RenderedRequest, rendered
from server.api.responses.admission import Asked, admit_response, continued, response_request
from server.api.responses.answer import CompactionAnswer, ResponseAnswer
from server.api.responses.background import Background
from server.api.responses.body import ResponseRequest, read_compact_request, read_response_request
from server.api.responses.events_log import EventLog
from server.api.responses.schema import (
    CompactedResponse,
    DeletedResponse,
    InputTokens,
    ResponseControl,
    ResponseEvent,
    ResponseItems,
    ResponseObject,
)
from server.api.responses.store import ResponseStore
from server.core.admission import prompt_ids
from server.core.request import Received
from server.core.run import Run
from server.errors import BadRequestError, UnknownRequestError
from server.http.reading import caller_of, hold_more, read, serving_of
from server.http.responses import json_response
from server.http.sse import EventStream, until_disconnect
from server.offload import read_long

router = APIRouter()
MOST_LISTED = 100
LISTED = 20


def store_of(request: Request) -> ResponseStore:
    """The app's store, made with the first request that wants it."""
    state = request.app.state
    if not hasattr(state, "responses"):
        settings = serving_of(request).settings
        state.responses = ResponseStore(settings.max_stored_responses, settings.max_stored_bytes)
    store = state.responses
    assert isinstance(store, ResponseStore)
    return store


def background_of(request: Request) -> Background:
    """The app's responses in the background, made with the first of them."""
    state = request.app.state
    if not hasattr(state, "background"):
        state.background = Background(store_of(request))
    made = state.background
    assert isinstance(made, Background)
    return made


async def _asked(request: Request, body: ResponseRequest, received: Received, *, compacts: bool = False) -> Asked:
    """With what it takes up of stored responses, which counts as if it had been sent. Raises ApiError."""
    serving = serving_of(request)
    kept = continued(body, received.client, store_of(request), serving.settings.max_body_bytes)
    return await response_request(body, await hold_more(received, kept.size, serving), kept, compacts=compacts)


@router.post(
    "/v1/responses",
    openapi_extra=body_of(ResponseRequest),
    response_class=Response,
    responses=answers_of(ResponseObject, 400, 404, 413, 415, 503, event=ResponseEvent),
)
async def responses(request: Request) -> Response:
    """Answers an input, in the mode that the request asks for."""
    serving, store = serving_of(request), store_of(request)
    with rejections(serving):
        body, received = await read(request, read_response_request)
        if body.background and not store.is_on:
            raise BadRequestError("background: this server stores no responses.", param="background")
        asked = await _asked(request, body, received)
        plan = await admit_response(asked.request, serving, truncates=body.truncation == "auto")
    run = Run(plan, serving)
    keep = None
    if body.store is not False and store.is_on:
        keep = partial(store.put, inputs=asked.inputs, client=received.client)
    log = store.new_log() if body.background and body.stream else None
    answer = ResponseAnswer(body, asked, run, plan.model, keep, log=log)
    store.began(plan.id, answer)
    if body.background:
        await background_of(request).begin(run.pieces(), answer, received.record)
        return json_response(answer.snapshot()) if log is None else EventStream(log.follow())
    if body.stream:
        return EventStream(streamed(run.pieces(), answer))
    return json_response(await until_disconnect(request.receive, complete(run.pieces(), answer)))


@router.post(
    "/v1/responses/input_tokens",
    openapi_extra=body_of(ResponseRequest),
    response_class=Response,
    responses=answers_of(InputTokens, 400, 404, 413, 415),
)
async def input_tokens(request: Request) -> Response:
    """Counts the tokens of an input, as a response would read it."""
    serving = serving_of(request)
    body, received = await read(request, read_response_request)
    asked = (await _asked(request, body, received)).request
    ids = await prompt_ids(asked, serving)
    return json_response({"object": "response.input_tokens", "input_tokens": len(ids)})


@router.post(
    "/v1/responses/render",
    openapi_extra=body_of(ResponseRequest),
    response_class=Response,
    responses=answers_of(RenderedRequest, 400, 404, 413, 415, 503),
)
async def render(request: Request) -> Response:
    """What the engine would be given for a response, which is not run."""
    serving = serving_of(request)
    body, received = await read(request, read_response_request)
    asked = (await _asked(request, body, received)).request
    plan = await admit_response(asked, serving, truncates=body.truncation == "auto")
    (answer,) = await rendered(plan, asked)
    return json_response(answer)


@router.post(
    "/v1/responses/compact",
    openapi_extra=body_of(ResponseRequest),
    response_class=Response,
    responses=answers_of(CompactedResponse, 400, 404, 413, 415, 503),
)
async def compact(request: Request) -> Response:
    """Makes a long conversation short: what the client said, and a summary of the rest, to be sent instead of it."""
    serving = serving_of(request)
    with rejections(serving):
        body, received = await read(request, read_compact_request)
        asked = await _asked(request, body, received, compacts=True)
        plan = await admit_response(asked.request, serving, truncates=body.truncation == "auto")
    run = Run(plan, serving)
    work = complete(run.pieces(), CompactionAnswer(asked, run))
    return json_response(await until_disconnect(request.receive, work))


@router.get(
    "/v1/responses/{response_id}",
    response_class=Response,
    responses=answers_of(ResponseObject, 400, 404, 413, 415, event=ResponseEvent),
)
async def response(
    request: Request, response_id: str, stream: str = "false", starting_after: str | None = None
) -> Response:
    """A response that is stored, or as far as it is; with `stream`, its events, from the one after `starting_after`."""
    client, store = await _client(request), store_of(request)
    running = store.under_way(response_id, client)
    stored = None if running is not None else store.get(response_id, client)
    if stream == "true":
        return _events_after(starting_after, (running or store.get(response_id, client)).log)
    if running is not None:
        return json_response(running.snapshot())
    assert stored is not None
    return Response(stored.response, media_type="application/json")


def _events_after(starting_after: str | None, log: EventLog | None) -> EventStream:
    """Raises BadRequestError."""
    if log is None:
        message = "stream: the events are kept of responses that were asked for with background and stream only."
        raise BadRequestError(message, param="stream")
    if starting_after is not None and not re.fullmatch("[0-9]{1,9}", starting_after):
        raise BadRequestError("starting_after must be the sequence_number of an event.", param="starting_after")
    after = -1 if starting_after is None else int(starting_after)
    log.check(after)
    return EventStream(log.follow(after))


@router.delete(
    "/v1/responses/{response_id}", response_class=Response, responses=answers_of(DeletedResponse, 404, 413, 415)
)
async def delete(request: Request, response_id: str) -> Response:
    """Deletes a stored response. Those that continue it cannot be continued any more."""
    store_of(request).delete(response_id, await _client(request))
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.get(
    "/v1/responses/{response_id}/input_items",
    response_class=Response,
    responses=answers_of(ResponseItems, 400, 404, 413, 415),
)
async def input_items(
    request: Request,
    response_id: str,
    after: str | None = None,
    limit: str = str(LISTED),
    order: str = "desc",
) -> Response:
    """The items of a response's own input, without those of the responses that it continued."""
    content = store_of(request).get(response_id, await _client(request)).input
    items = await read_long(lambda: orjson.loads(content), len(content))
    if order not in ("asc", "desc"):
        raise BadRequestError('order must be "asc" or "desc".', param="order")
    if not limit.isdecimal() or not 1 <= int(limit) <= MOST_LISTED:
        raise BadRequestError(f"limit must be a number from 1 to {MOST_LISTED}.", param="limit")
    if order == "desc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise BadRequestError(f"after: there is no item {after[:64]!r}.", param="after")
        items = items[ids.index(after) + 1 :]
    shown = items[: int(limit)]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    listed = {"object": "list", "data": shown, "first_id": first, "last_id": last}
    return json_response({**listed, "has_more": len(items) > len(shown)})


@router.post(
    "/v1/responses/{response_id}/cancel",
    response_class=Response,
    responses=answers_of(ResponseObject, 400, 404, 413, 415),
)
async def cancel(request: Request, response_id: str) -> Response:
    """Ends a running response after its next tokens; its stream ends with what there is. One of the background that is
    over stays as it is.
    """
    client, store, serving = await _client(request), store_of(request), serving_of(request)
    running = store.under_way(response_id, client)
    if running is None:
        stored = store.get(response_id, client)
        if orjson.loads(stored.response)["background"]:
            return Response(stored.response, media_type="application/json")
        raise BadRequestError("Only a response that is still running can be cancelled.", param="response_id")
    serving.cancel(response_id, caller_of(request.scope))
    return json_response(running.cancel())


@router.post(
    "/v1/responses/{response_id}/control",
    openapi_extra=body_of(ControlRequest),
    response_class=Response,
    responses=answers_of(ResponseControl, 400, 404, 413, 415),
)
async def control(request: Request, response_id: str) -> Response:
    """Closes the thinking of a running response."""
    asked, received = await read(request, read_control_request)
    if store_of(request).under_way(response_id, received.client) is None:
        raise UnknownRequestError(response_id)
    closed = bool(serving_of(request).end_thinking(response_id, received.caller))
    return json_response({"id": response_id, "object": "response.control", "action": asked.action, "closed": closed})


async def _client(request: Request) -> str:
    """The client of a request that has no body to read."""
    _, received = await read(request, lambda _: None)
    return received.client


API = Api(
    router=router,
    bodies=(ResponseRequest, ControlRequest),
    answers=(
        *(ResponseObject, ResponseEvent, ResponseItems, DeletedResponse, InputTokens, ResponseControl),
        *(CompactedResponse, RenderedRequest),
    ),
    access={"/v1/responses/{response_id}/control": "control"},
)
