"""What is fuzzed: each target takes bytes, and accepts them or raises an error of ours, at no great cost.

The contract is 50 ms and 50 MB for an input of a few kilobytes. It is computing time that counts, which a busy machine
hardly changes, and SLACK times as much of it, for the fuzzer's own instruments.
"""

import asyncio
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any, Literal

import orjson
from jinja2 import TemplateSyntaxError

from chat_templates import limits
from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.errors import FormatError
from chat_templates.events import AnswerText, ReasoningText
from chat_templates.format import ChatFormat
from chat_templates.parser import OutputParser
from chat_templates.settings import DIRECT, FormatSettings
from chat_templates.tokens import Vocabulary
from server.api.chat.admission import chat_request
from server.api.chat.body import read_chat_request
from server.api.common.control_body import read_control_request
from server.api.completions.admission import completion_request
from server.api.completions.body import read_completion_request
from server.api.messages.admission import count_tokens_request, messages_request
from server.api.messages.body import read_count_tokens_request, read_messages_request
from server.api.responses.admission import admit_response, continued, response_request
from server.api.responses.body import read_response_request
from server.api.responses.store import ResponseStore
from server.api.tokens.admission import tokenize_request
from server.api.tokens.body import read_detokenize_request, read_tokenize_request
from server.core.admission import admit, prompt_ids
from server.core.grammar_jobs import RuleJob
from server.core.grammar_pool import GrammarPool
from server.core.grammars import of_choices, of_lark, of_regex, of_schema, schema_of
from server.core.request import Received, Request
from server.core.schema_limits import most_forced
from server.core.serving import Serving
from server.core.stop_strings import StopStrings
from server.errors import ApiError
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.fake_engine import FakeEngine

SECONDS, MEGABYTES, SLACK = 0.05, 50, 20
MOST_BYTES = 4096

FMT = ChatFormat.from_folder(EMBEDDED_MODEL)
VOCABULARY = Vocabulary((EMBEDDED_MODEL / "tokenizer.json").read_text(), required=())
"""Read once: that takes longer than all that a template does."""
SERVING = Serving(
    settings=Settings(),
    profile=load_profile(PROFILE_FOLDER / "exaone4.toml"),
    fmt=FMT,
    engine=FakeEngine(lambda _: iter([FMT.end_of_turn_id]), (FMT.end_of_turn_id,)),
)
SIZE = next(number for number in count() if not FMT.vocabulary.token_text(number))
"""How many tokens there are."""
POOL = GrammarPool()
BOUND = ("response_format", "structured_outputs", "tools")  # what goes to another process, and has a target of its own


class Broken(Exception):  # noqa: N818 - reads as what it says
    """The contract is."""


def _requests(kind: int, content: bytes) -> Iterator[Request]:
    """Raises ApiError."""
    if kind == 0:
        yield chat_request(read_chat_request(content), Received(size=len(content)))
    elif kind == 1:
        yield completion_request(read_completion_request(content), Received(size=len(content)))
    elif kind == 2:
        yield tokenize_request(read_tokenize_request(content), Received(size=len(content)))
    elif kind == 3:
        read_detokenize_request(content)
    else:
        read_control_request(content)


def bodies(data: bytes) -> None:
    """The first byte is the API, the rest a body; it is read and planned."""
    for request in _requests(data[0] % 5 if data else 0, data[1:]):
        if not any(f'"{field}"'.encode() in data for field in BOUND):
            asyncio.run(admit(request, SERVING))


def messages(data: bytes) -> None:
    """A body of Anthropic's, once its tokens are counted and once it is planned."""
    received = Received(size=len(data))
    with suppress(ApiError):
        asyncio.run(prompt_ids(count_tokens_request(read_count_tokens_request(data), received), SERVING))
    asyncio.run(_plan_messages(data))


def responses(data: bytes) -> None:
    """A body of `/v1/responses`; nothing is stored that it could refer to."""
    asyncio.run(_plan_response(data))


def plans(data: bytes) -> None:
    """The first byte is the API, the rest a body with tools and what else binds the answer; it is planned."""
    plan = (_plan_chat, _plan_completion, _plan_messages, _plan_response)[data[0] % 4 if data else 0]
    asyncio.run(plan(data[1:]))


async def _plan_chat(content: bytes) -> None:
    await admit(chat_request(read_chat_request(content), Received(size=len(content))), SERVING)


async def _plan_completion(content: bytes) -> None:
    await admit(completion_request(read_completion_request(content), Received(size=len(content))), SERVING)


async def _plan_messages(content: bytes) -> None:
    await admit(messages_request(read_messages_request(content), Received(size=len(content))), SERVING)


async def _plan_response(content: bytes) -> None:
    body = read_response_request(content)
    asked = await response_request(body, Received(size=len(content)), continued(body, "", ResponseStore(0, 0), 0))
    await admit_response(asked.request, SERVING, truncates=body.truncation == "auto")


def templates(data: bytes) -> None:
    """A checkpoint's template, and after a zero byte what a client says to it."""
    source, _, said = data.decode(errors="surrogateescape").partition("\0")
    messages = [{"role": "user", "content": said.encode(errors="replace").decode(errors="replace")}]
    try:
        template = CheckpointTemplate(TemplateFiles(source, None, {"eos_token": "[|endofturn|]"}), FormatSettings())
    except (FormatError, TemplateSyntaxError):
        return
    fmt = ChatFormat(VOCABULARY.for_template(source), template)
    with limits.at_most(SECONDS):
        fmt.render(messages, DIRECT)


def streams(data: bytes) -> None:
    """Token ids and how they are cut, to events: equal however they are cut, and no text is lost."""
    ids = [int.from_bytes(data[at : at + 2], "big") % SIZE for at in range(0, len(data) - 1, 2)]
    whole = _texts([ids], thinking_open=len(data) % 2 == 1)
    if whole != _texts([ids[at : at + 3] for at in range(0, len(ids), 3)], thinking_open=len(data) % 2 == 1):
        raise Broken("the cuts change the events")


def _texts(parts: list[list[int]], *, thinking_open: bool) -> list[str]:
    """Of reasoning, of the answer, and of the calls."""
    parser = OutputParser(FMT, thinking_open=thinking_open, call_id=lambda: "call")
    events = [event for part in parts for event in parser.feed(part)] + parser.finish()
    texts = ["", "", ""]
    for event in events:
        if isinstance(event, ReasoningText):
            texts[0] += event.text
        elif isinstance(event, AnswerText):
            texts[1] += event.text
        else:
            texts[2] += getattr(event, "name", "") + getattr(event, "text", "")
    return texts


def stops(data: bytes) -> None:
    """Stop strings, each before a zero byte, and a text: the first that is complete ends it, whole or in pieces."""
    *found, text = data.decode(errors="replace").split("\0")
    wanted = [stop for stop in found if stop][:16]
    for size in (1, 3, len(text) + 1):
        reader = StopStrings(wanted)
        shown = "".join(reader.feed(text[at : at + size]) for at in range(0, len(text), size))
        shown += "" if reader.hit else reader.finish()
        if shown != _until(text, wanted):
            raise Broken("not the text before the first stop string")


def _until(text: str, wanted: list[str]) -> str:
    """The plain reference: of the stop strings that are complete first, the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in wanted if stop in text]
    return text if not ends else text[: sum(min(ends))]


def schemas(data: bytes) -> None:
    """A JSON schema, up to what the grammar's process does with it: ValueError is its refusal."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    try:
        schema = schema_of(value)
        of_schema(schema)
        most_forced(schema)
    except ValueError:
        return


def grammars(data: bytes) -> None:
    """The first byte is a kind of grammar; as a request has it checked, in a process apart.

    What is refused while it is written is so here too, where the fuzzer sees how far it came. Most are, and a process
    takes a hundred times as long.
    """
    kinds = tuple(WRITERS)
    kind = kinds[data[0] % len(kinds) if data else 0]
    text = data[1:].decode(errors="replace")
    value: Any = text.split("\0") if kind == "choice" else text
    with suppress(ValueError):
        WRITERS[kind](value)
        asyncio.run(POOL.written(RuleJob("field", kind, value), 0))


WRITERS: dict[Literal["json", "regex", "choice", "grammar"], Callable[[Any], str]] = {
    "json": lambda value: of_schema(schema_of(value)),
    "regex": of_regex,
    "choice": of_choices,
    "grammar": of_lark,
}
"""As `grammar_worker` has them."""


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (bodies, messages, responses, plans, templates, streams, stops, schemas, grammars)
}


def run(target: Callable[[bytes], None], data: bytes) -> None:
    """Raises what is no error of ours, and Broken where the contract is."""
    data = data[:MOST_BYTES]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with suppress(ApiError, FormatError):
        target(data)
    spent, grown = time.thread_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if spent > SLACK * SECONDS or grown > MEGABYTES << 10:
        raise Broken(f"{spent:.3f} s and {grown >> 10} MB for {len(data)} bytes")
