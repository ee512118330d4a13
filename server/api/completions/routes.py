"""The route of text completions: read, admit, run, answer."""

from fastapi import APIRouter, Request, Response

from server.api.common.answering import complete, rejections, stream
from server.api.common.openapi import Api, answers_of, body_of
from server.api.common.rendered import RenderedRequests, rendered
from server.api.common.sampling import has_continuous_usage, includes_usage
from server.api.completions.admission import completion_request
from server.api.completions.answer import TextEvents, TextResponse, Texts, Told
from server.api.completions.body import CompletionRequest, read_completion_request
from server.api.completions.schema import TextCompletion
from server.core.admission import admit
from server.core.run import Run
from server.http.reading import read, serving_of
from server.http.responses import json_response
from server.http.sse import EventStream, until_disconnect

router = APIRouter()


@router.post(
    "/v1/completions",
    openapi_extra=body_of(CompletionRequest),
    response_class=Response,
    responses=answers_of(TextCompletion, 400, 404, 413, 415, 503, event=TextCompletion),
)
async def completions(request: Request) -> Response:
    """Goes on with a text or with token ids."""
    serving = serving_of(request)
    with rejections(serving):
        asked, received = await read(request, read_completion_request)
        include_usage = includes_usage(asked)
        plan = await admit(completion_request(asked, received), serving)
    run = Run(plan, serving)
    told = Told(asked.logprobs, asked.prompt_logprobs, bool(asked.return_tokens_as_token_ids))
    texts = Texts(plan, run.choices, serving, echoes=bool(asked.echo), generates=asked.max_tokens != 0, told=told)
    streams, continuous = asked.stream, has_continuous_usage(asked)
    del asked  # which may take much, while the answer may take long
    if streams:
        events = TextEvents(texts, include_usage=include_usage, continuous_usage=continuous)
        return EventStream(stream(run.pieces(), events))
    work = complete(run.pieces(), TextResponse(texts))
    return json_response(await until_disconnect(request.receive, work))


@router.post(
    "/v1/completions/render",
    openapi_extra=body_of(CompletionRequest),
    response_class=Response,
    responses=answers_of(RenderedRequests, 400, 404, 413, 415, 503),
)
async def render(request: Request) -> Response:
    """What the engine would be given for each prompt of a text completion, which is not run."""
    serving = serving_of(request)
    body, received = await read(request, read_completion_request)
    includes_usage(body)
    asked = completion_request(body, received)
    return json_response(await rendered(await admit(asked, serving), asked, body.stream_options))


API = Api(router=router, bodies=(CompletionRequest,), answers=(TextCompletion, RenderedRequests))
