"""The route of `POST /ask`: read, admit, run, answer."""

from fastapi import APIRouter, Request, Response

from server.api.common.answering import complete, rejections, stream
from server.api.common.openapi import Api, answers_of, body_of
from server.core.admission import admit
from server.core.run import Run
from server.http.reading import read, serving_of
from server.http.responses import json_response
from server.http.sse import EventStream, until_disconnect
from tests.server.example_api.admission import ask_request
from tests.server.example_api.answer import AskAnswer, AskWriter
from tests.server.example_api.body import AskRequest, read_ask_request

router = APIRouter()


@router.post(
    "/ask",
    openapi_extra=body_of(AskRequest),
    response_class=Response,
    responses=answers_of(AskAnswer, 400, 413, 415, 503, event=AskAnswer),
)
async def ask(request: Request) -> Response:
    """Answers a question."""
    serving = serving_of(request)
    with rejections(serving):
        asked, received = await read(request, read_ask_request)
        plan = await admit(ask_request(asked, received), serving)
    run = Run(plan, serving)
    writer = AskWriter(run)
    if asked.stream:
        return EventStream(stream(run.pieces(), writer))
    return json_response(await until_disconnect(request.receive, complete(run.pieces(), writer)))


API = Api(router=router, bodies=(AskRequest,), answers=(AskAnswer,))
