"""How long long bodies keep the front end from everybody else: `python -m benchmarks.gaps_beside_long_bodies`.

The front end runs here, around an engine that brings every request a token each TOKEN_SECONDS; the bodies, as many at
once and as long as asked for, come from a process apart. A task of the event loop notes when it gets its turn. Between
two turns nobody gets a token. What is told of the longest times between two turns, for each kind of body:

- `gap`: by the clock. On a machine that has other work it is longer than the front end's doing.
- `loop`: what the event loop's thread computed in it. This is the front end's doing, whatever else the machine does.
- `process`: what all threads computed in it. A thread that lets nobody else run (a parser, a regular expression) is in
  it and not in `loop`; so are threads that ran beside the loop, which kept it from nothing.

What is to be reached: no gap over 250 ms. Where `process` is below that, no gap over it is the front end's.
"""

import argparse
import asyncio
import faulthandler
import gc
import json
import multiprocessing
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvloop

from benchmarks.result_text import result_text
from chat_templates.format import ChatFormat
from engine.messages import PROTOCOL_VERSION, Adapter, Delta, Generate, Ready, Stats, TokenLogprob, encode
from server.app import create_app
from server.draining import DrainingServer
from server.engine_client import EngineStatus
from server.http.config import server_config
from server.listeners import bind
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.offload import prefer_event_loop
from server.settings import EMBEDDED_MODEL, Settings

TURN_SECONDS = 0.005
TOKEN_SECONDS = 0.02
CONTEXT = 131_072
MODEL = "twogear-tiny"
CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
WORDS = "seven green apples fall; how many are left of 123 if (a + b) is even? "
STACK_SECONDS = 0.15

Body = dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """Of one kind of body. Seconds; `ends`: how the requests ended, by status; `turns`: how many there were."""

    kind: str
    gap: float
    loop: float
    process: float
    turns: int
    seconds: float
    ends: dict[str, int]


def _chat(*messages: Body, **fields: Any) -> Body:
    return {"model": MODEL, "messages": list(messages), "max_tokens": 4, **fields}


def _user(content: object) -> Body:
    return {"role": "user", "content": content}


def _text(size: int) -> str:
    return (WORDS * (size // len(WORDS) + 1))[:size]


def _tool(number: int) -> Body:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    return {"type": "function", "function": {"name": f"f{number}", "description": WORDS, "parameters": schema}}


def _times(size: int, one: object) -> int:
    """How many of `one` make so many bytes."""
    return size // (len(json.dumps(one)) + 2)


def _many(size: int, one: Any) -> list[Any]:
    return [one] * _times(size, one)


def _ids(size: int) -> list[int]:
    rng = random.Random(0)
    return [rng.randrange(10, 400) for _ in range(size // 5 - 100)]


def _turns(size: int) -> list[Body]:
    pair = [_user(WORDS), {"role": "assistant", "content": WORDS}]
    return pair * (_times(size, pair) - 1)


KINDS: dict[str, tuple[str, Callable[[int], Body]]] = {
    "one message": (CHAT, lambda size: _chat(_user(_text(size)))),
    "one message of one letter": (CHAT, lambda size: _chat(_user("a" * size))),
    "one message of digits": (CHAT, lambda size: _chat(_user("1234567890" * (size // 10)))),
    "one message of blanks": (CHAT, lambda size: _chat(_user(" \n" * (size // 3)))),
    "one message beyond ASCII": (CHAT, lambda size: _chat(_user("日本é" * (size // 18)))),
    "one message of tags": (CHAT, lambda size: _chat(_user("[|endofturn|]</think>" * (size // 21)))),
    "many messages": (CHAT, lambda size: _chat(*_turns(size), _user("Hi"))),
    "many short messages": (CHAT, lambda size: _chat(*_many(min(size, 1_500_000), _user("a")))),
    "many parts": (CHAT, lambda size: _chat(_user(_many(min(size, 1_500_000), {"type": "text", "text": "a b"})))),
    "long parts": (CHAT, lambda size: _chat(_user([{"type": "text", "text": _text(size // 20)}] * 20))),
    "tools": (CHAT, lambda size: _chat(_user("Hi"), tools=[_tool(n) for n in range(_times(size, _tool(10_000)))])),
    "one long tool": (CHAT, lambda size: _chat(_user("Hi"), tools=[_tool(0) | {"description": _text(size)}])),
    "calls": (
        CHAT,
        lambda size: _chat(
            _user("Hi"),
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "f", "arguments": json.dumps({"a": _text(size)})},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "1"},
        ),
    ),
    "schema": (
        CHAT,
        lambda size: _chat(
            _user("Hi"),
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"enum": [f"{n} {WORDS}" for n in range(size // 80)]}},
            },
        ),
    ),
    "bias": (CHAT, lambda size: _chat(_user("Hi"), logit_bias={str(n): 1 for n in range(min(size // 12, 190_000))})),
    "unknown field": (CHAT, lambda size: _chat(_user("Hi"), metadata={"a": _text(size)})),
    "unknown list": (CHAT, lambda size: _chat(_user("Hi"), other=_many(size, 1))),
    "wrong type": (CHAT, lambda size: _chat(_user("Hi"), n=_text(size))),
    "prompt text": (COMPLETIONS, lambda size: {"prompt": _text(size), "max_tokens": 4}),
    "prompt texts": (COMPLETIONS, lambda size: {"prompt": _many(size, WORDS * 30), "max_tokens": 4}),
    "short prompt texts": (COMPLETIONS, lambda size: {"prompt": _many(size, "a b"), "max_tokens": 4}),
    "prompt ids": (COMPLETIONS, lambda size: {"prompt": _ids(size), "max_tokens": 4}),
    "prompt lists of ids": (COMPLETIONS, lambda size: {"prompt": [_ids(size // 1000)] * 1000, "max_tokens": 4}),
    "ids that fit": (COMPLETIONS, lambda _: {"prompt": _ids(5 * (CONTEXT - 100)), "max_tokens": 4}),
    "echo": (
        COMPLETIONS,
        lambda _: {"prompt": _ids(5 * 20_000), "max_tokens": 0, "echo": True, "logprobs": 5},
    ),
    "tokenize": ("/tokenize", lambda size: {"prompt": _text(size)}),
    "tokenize with texts": ("/tokenize", lambda size: {"prompt": _text(size), "return_token_strs": True}),
    "detokenize": ("/detokenize", lambda size: {"tokens": _ids(size)}),
    "Anthropic: one message": (MESSAGES, lambda size: _chat(_user(_text(size)))),
    "Anthropic: many messages": (MESSAGES, lambda size: _chat(*_turns(size), _user("Hi"))),
    "Anthropic: many blocks": (
        MESSAGES,
        lambda size: _chat(_user(_many(min(size, 1_500_000), {"type": "text", "text": "a b"}))),
    ),
    "Responses: one input": (RESPONSES, lambda size: {"model": MODEL, "input": _text(size), "max_output_tokens": 4}),
    "Responses: many items": (
        RESPONSES,
        lambda size: {"model": MODEL, "input": [*_turns(size), _user("Hi")], "max_output_tokens": 4},
    ),
}
"""From a size in bytes to a body of about that size, or what of its kind is let in."""


class _Engine:
    """Brings every request a token each TOKEN_SECONDS."""

    def __init__(self, end_of_turn: int) -> None:
        self.status = EngineStatus("ready", "", 1.0)
        self.stats: Stats | None = None
        self.restarts: dict[str, int] = {}
        self.ready: Ready | None = Ready(PROTOCOL_VERSION, "none", "none", CONTEXT, 64, (end_of_turn,), ())

    @property
    def replicas(self) -> "Sequence[_Engine]":
        """Itself."""
        return (self,)

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to end."""

    def prioritize(self, request_id: str, priority: int) -> None:
        """Nothing: all run at once."""

    async def load_adapter(self, adapter: Adapter) -> None:
        """Nothing."""

    def unload_adapter(self, adapter_id: int) -> None:
        """Nothing."""

    def is_running(self, request_id: str) -> bool:  # noqa: ARG002
        """As long as anybody reads, and nobody stays away here."""
        return True

    def abort(self, request_id: str) -> None:
        """Nobody asks for it."""

    async def generate(self, request: Generate, kind: str = "") -> AsyncGenerator[Delta, None]:  # noqa: ARG002
        """Token 20 again and again. The request is encoded as for an engine process."""
        encode(request)
        told = request.sampling.prompt_logprobs
        entry = TokenLogprob(-1.0, [(token_id, -1.0) for token_id in range(20, 20 + (told or 0))])
        of_prompt = None if told is None else [None, *[entry] * (len(request.prompt_ids) - 1)]
        for left in range(request.sampling.max_tokens - 1, -1, -1):
            await asyncio.sleep(TOKEN_SECONDS)
            finish = None if left else "length"
            one = None if request.sampling.logprobs is None else [entry]
            yield Delta(request.request_id, [20], 0, finish, logprobs=one, prompt_logprobs=of_prompt)  # type: ignore[arg-type]
            of_prompt = None


class _Turns:
    """A task of the event loop that notes when it gets its turn; `stacks`: where it is late, all threads' are written
    to stderr.
    """

    def __init__(self, *, stacks: bool) -> None:
        self.gap = self.loop = self.process = 0.0
        self.count = 0
        self._stacks = stacks

    async def run(self) -> None:
        """Until it is cancelled."""
        last = _clocks()
        while True:
            if self._stacks:
                faulthandler.dump_traceback_later(STACK_SECONDS + TURN_SECONDS)
            await asyncio.sleep(TURN_SECONDS)
            now = _clocks()
            gap, loop, process = (new - old for new, old in zip(now, last, strict=True))
            self.gap, self.loop = max(self.gap, gap - TURN_SECONDS), max(self.loop, loop)
            self.process = max(self.process, process)
            self.count += 1
            last = now


def _clocks() -> tuple[float, float, float]:
    return time.perf_counter(), time.thread_time(), time.process_time()


def send(url: str, kind: str, size: int, count: int, results: "multiprocessing.Queue[Counter[str]]") -> None:
    """In a process apart: so many bodies of a kind at once, and how they ended."""
    path, make = KINDS[kind]
    content = json.dumps(make(size), ensure_ascii=False).encode()

    async def one(http: httpx.AsyncClient) -> str:
        try:
            response = await http.post(path, content=content, headers={"content-type": "application/json"})
        except httpx.HTTPError as error:
            return type(error).__name__
        return str(response.status_code)

    async def all_of_them() -> Counter[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
            return Counter(await asyncio.gather(*(one(http) for _ in range(count))))

    results.put(asyncio.run(all_of_them()))


async def measure(url: str, kind: str, size: int, count: int, *, stacks: bool) -> Figures:
    """One kind."""
    spawning = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[Counter[str]] = spawning.Queue()
    sender = spawning.Process(target=send, args=(url, kind, size, count, results))
    turns = _Turns(stacks=stacks)
    sender.start()
    started = time.perf_counter()
    task = asyncio.create_task(turns.run())
    await asyncio.to_thread(sender.join)  # what it has to say fits into the pipe
    await asyncio.sleep(0.5)  # for what is put away after the answers
    task.cancel()
    faulthandler.cancel_dump_traceback_later()
    ends = {} if results.empty() else dict(results.get())
    seconds = time.perf_counter() - started
    return Figures(kind, turns.gap, turns.loop, turns.process, turns.count, seconds, ends)


async def measure_all(kinds: list[str], size: int, count: int, *, stacks: bool) -> list[Figures]:
    """All kinds, one after the other, on one server."""
    fmt = ChatFormat.from_folder(EMBEDDED_MODEL)
    settings = Settings()
    prefer_event_loop()
    gc.freeze()  # as `server.launch` has it
    app = create_app(_Engine(fmt.end_of_turn_id), settings, load_profile(PROFILE_FOLDER / "twogear_tiny.toml"), fmt)
    listener = bind("127.0.0.1", 0)
    server = DrainingServer(app.state.serving, server_config(app, settings))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    found = []
    for kind in kinds:
        figures = await measure(url, kind, size, count, stacks=stacks)
        print(json.dumps(asdict(figures)), flush=True)
        found.append(figures)
    server.should_exit = True
    await serving
    return found


def main() -> int:
    """Measures all kinds, prints a line for each and writes the result; status 1 where a gap is too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="of bodies")
    parser.add_argument("--count", type=int, default=50, help="of them at once")
    parser.add_argument("--size", type=int, default=4 * 1024 * 1024 - 1024, help="of each, in bytes, about")
    parser.add_argument("--most", type=float, default=0.25, help="seconds that a gap may have")
    parser.add_argument("--stacks", action="store_true", help="write all threads' stacks where there is a gap")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure_all(args.kinds, args.size, args.count, stacks=args.stacks))
    late = [figures.kind for figures in found if figures.gap > args.most]
    if args.json is not None:
        head = {
            "what": "gaps_beside_long_bodies",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "cpu": platform.processor() or platform.machine(),
            "command": f"python -m benchmarks.gaps_beside_long_bodies --count {args.count} --size {args.size}",
        }
        args.json.write_text(result_text({**head, "kinds": [asdict(figures) for figures in found]}))
    if late:
        print(f"gaps of more than {args.most:g} s beside: {', '.join(late)}", file=sys.stderr)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
