"""The route of text completions: read, admit, run, answer."""

from fastapi import APIRouter, Request, Response

from server.api.common.answering import complete, rejections, stream
from server.api.common.openapi import Api, answers_of, body_of
from server.api.common.sampling import includes_usage
from server.api.completions.admission import completion_request
from server.api.completions.answer import TextEvents, TextResponse, Texts
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
    texts = Texts(plan, run.choices, serving, echoes=bool(asked.echo), generates=asked.max_tokens != 0)
    streams = asked.stream
    del asked  # which may take much, while the answer may take long
    if streams:
        return EventStream(stream(run.pieces(), TextEvents(texts, include_usage=include_usage)))
    work = complete(run.pieces(), TextResponse(texts))
    return json_response(await until_disconnect(request.receive, work))


API = Api(router=router, bodies=(CompletionRequest,), answers=(TextCompletion,))
