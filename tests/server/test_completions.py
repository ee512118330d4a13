"""Text completions, and the tokenizer's two routes."""

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chat_templates.format import ChatFormat
from chat_templates.settings import THINKING
from engine.messages import Generate, TokenLogprob
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, MODEL, Client, always
from tests.server.test_http import error_of
from tests.server.test_streaming import events_of

PATH = "/v1/completions"
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text(" né\nend"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


async def post(client: Client, engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    async with client(engine) as http:
        response = await http.post(PATH, json={"model": MODEL, "prompt": "Once", **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def test_a_text_goes_on(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    result = await post(client, engine)
    assert result["object"] == "text_completion"
    (choice,) = result["choices"]
    assert choice == {
        "index": 0, "text": " né\nend", "logprobs": None, "finish_reason": "stop", "stop_reason": None
    }  # fmt: skip
    (request,) = engine.seen
    assert request.prompt_ids == fmt.encode_text("Once")
    assert request.sampling.max_tokens == 16
    assert result["usage"]["completion_tokens"] == len(fmt.encode_text(" né\nend")) + 1


async def test_prompts_of_all_kinds(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    ids = [*fmt.encode_text("a"), fmt.think_id]
    for prompt, expected in [
        ("</think>", [fmt.encode_text("</think>")]),
        (ids, [ids]),
        (["a", "b"], [fmt.encode_text("a"), fmt.encode_text("b")]),
        ([ids, [5]], [ids, [5]]),
    ]:
        engine.seen.clear()
        result = await post(client, engine, prompt=prompt, n=2, seed=1)
        assert [choice["index"] for choice in result["choices"]] == list(range(2 * len(expected)))
        assert sorted(request.prompt_ids for request in engine.seen) == sorted(expected * 2)
        assert result["usage"]["prompt_tokens"] == sum(map(len, expected))
    assert fmt.think_end_id not in fmt.encode_text("</think>")


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "[0-9]+"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}},
        {"response_format": {"type": "json_object"}},
    ],
)
async def test_a_grammar_binds_the_text(client: Client, engine: FakeEngine, fields: dict[str, Any]) -> None:
    await post(client, engine, prompt=["a", "b"], **fields)
    grammars = [request.sampling.grammar for request in engine.seen]
    assert grammars == [grammars[0]] * 2
    assert grammars[0] is not None
    engine.seen.clear()
    await post(client, engine, response_format={"type": "text"})
    assert engine.seen[0].sampling.grammar is None


async def test_token_ids_on_request(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    result = await post(client, engine, prompt=["a", "b"], return_token_ids=True)
    ids = [*fmt.encode_text(" né\nend"), fmt.end_of_turn_id]
    told = [(choice["prompt_token_ids"], choice["token_ids"]) for choice in result["choices"]]
    assert told == [(fmt.encode_text("a"), ids), (fmt.encode_text("b"), ids)]
    scored = await post(client, engine, echo=True, max_tokens=0, return_token_ids=True)
    assert scored["choices"][0]["token_ids"] == []


async def test_cached_tokens_are_those_of_all_prompts(client: Client, engine: FakeEngine) -> None:
    engine.cached_tokens = 1
    result = await post(client, engine, prompt=["ab", "cd", "ef"], n=2)
    assert result["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


async def test_echo_with_logprobs_scores_the_prompt(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    result = await post(client, engine, echo=True, logprobs=2, max_tokens=0)
    (choice,) = result["choices"]
    ids = fmt.encode_text("Once")
    assert (choice["text"], choice["finish_reason"]) == ("Once", "length")
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == "Once"
    assert logprobs["token_logprobs"] == [None, *(-token_id / 1000 for token_id in ids[1:])]
    assert logprobs["top_logprobs"][0] is None
    assert [len(likeliest) for likeliest in logprobs["top_logprobs"][1:]] == [2] * (len(ids) - 1)
    starts = [sum(map(len, logprobs["tokens"][:index])) for index in range(len(ids))]
    assert logprobs["text_offset"] == starts
    assert result["usage"]["completion_tokens"] == 0


@given(data=st.data())
def test_streaming_equals_not_streaming(client: Client, fmt: ChatFormat, data: st.DataObject) -> None:
    text = data.draw(st.text(alphabet="aé😀\n ", max_size=8))
    controls = st.sampled_from(sorted(fmt.control_ids))
    ids = [*fmt.encode_text(text), *data.draw(st.lists(controls, max_size=2)), fmt.end_of_turn_id]
    fields = data.draw(
        st.fixed_dictionaries(
            {"prompt": st.sampled_from(["x", ["x", "yé"]])},
            optional={
                "echo": st.booleans(),
                "logprobs": st.integers(0, 2),
                "n": st.integers(1, 2),
                "max_tokens": st.integers(1, 9),
                "stop": st.sampled_from(["a", ["\n", "é "]]),
                "return_token_ids": st.just(True),
            },
        )
    )
    chunks = [data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)) for _ in range(2)]

    async def both() -> tuple[list[Any], Any, list[Any]]:
        engines = [FakeEngine(always(ids), (fmt.end_of_turn_id,), chunks=sizes) for sizes in chunks]
        async with client(engines[0]) as http:
            whole = (await http.post(PATH, json=fields)).json()
        async with client(engines[1]) as http:
            asked = {**fields, "stream": True, "stream_options": {"include_usage": True}}
            streamed = events_of((await http.post(PATH, json=asked)).text)
        return whole["choices"], whole["usage"], streamed

    choices, counts, (*parts, usage, done) = asyncio.run(both())
    assert (done, usage["usage"]) == ("[DONE]", counts)
    for choice in choices:
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        for name in LISTS:
            joined = [value for part in mine for value in (part["logprobs"] or {}).get(name, [])]
            assert joined == (choice["logprobs"] or {}).get(name, [])
        assert [token_id for part in mine for token_id in part.get("token_ids", [])] == choice.get("token_ids", [])
        assert mine[0].get("prompt_token_ids") == choice.get("prompt_token_ids")
    if "return_token_ids" in fields:
        assert sum(len(choice["token_ids"]) for choice in choices) == counts["completion_tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 100}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"max_tokens": 5000}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "."}, "suffix"),
        ({"reasoning_mode": "reasoning"}, "reasoning_mode"),
        ({"topk": 1}, "topk"),
        ({"stream_options": {}}, "stream_options"),
    ],
)
async def test_a_bad_field_is_named(client: Client, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    async with client(engine) as http:
        response = await http.post(PATH, json={"model": MODEL, "prompt": "a", **fields})
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert not engine.seen


async def test_tokenize_and_back(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    async with client(engine) as http:
        text = (await http.post("/tokenize", json={"prompt": "a</think>é", "return_token_strs": True})).json()
        chat = (await http.post("/tokenize", json={"messages": HELLO, "reasoning_effort": "low"})).json()
        back = (await http.post("/detokenize", json={"tokens": chat["tokens"]})).json()
        again = (await http.post("/detokenize", json={"tokens": text["tokens"]})).json()
    assert text["tokens"] == fmt.encode_text("a</think>é")
    assert (text["count"], text["max_model_len"]) == (len(text["tokens"]), 4096)
    assert len(text["token_strs"]) == text["count"]
    assert chat["tokens"] == fmt.render(HELLO, THINKING)
    assert chat["token_strs"] is None
    assert back["prompt"] == fmt.decode(chat["tokens"], show_control=True)
    assert again["prompt"] == "a</think>é"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/tokenize", {"prompt": "a", "model": "gpt-5"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [10**12]}, "tokens[0]"),
    ],
)
async def test_bad_tokenizer_requests(
    client: Client, engine: FakeEngine, path: str, fields: dict[str, Any], param: str
) -> None:
    async with client(engine) as http:
        response = await http.post(path, json=fields)
    assert response.status_code in (400, 404)
    assert error_of(response)["param"] == param


async def test_the_documentation_has_every_body(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        document = (await http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path in (PATH, "/tokenize", "/detokenize", "/v1/chat/completions"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for one in schema.get("anyOf", [schema]):
            assert schemas[one["$ref"].rpartition("/")[2]]["properties"]


class Noting(list[Any]):
    """A list that notes which threads take parts of it. Another than the event loop's waits for the loop to turn, which
    it would not if it waited for that thread.
    """

    def __init__(self, items: list[Any], threads: set[str], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(items)
        self._threads, self._loop = threads, loop

    def __getitem__(self, key: Any) -> Any:
        name = threading.current_thread().name.partition("_")[0]
        if name not in self._threads and threading.current_thread() is not threading.main_thread():
            turned = threading.Event()
            self._loop.call_soon_threadsafe(turned.set)
            assert turned.wait(120)
        self._threads.add(name)
        return super().__getitem__(key)


class Scored(FakeEngine):
    """`threads`: those that told the log-probabilities of a prompt."""

    threads: set[str]

    def _prompt_logprobs(self, request: Generate) -> list[TokenLogprob | None] | None:
        self.threads, loop = set(), asyncio.get_running_loop()
        entries = super()._prompt_logprobs(request)
        assert entries is not None
        return [None, *(replace(entry, top=Noting(entry.top, self.threads, loop)) for entry in entries if entry)]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("tokens", "name"), [(1000, "prompts"), (4, "MainThread")])
async def test_a_long_prompts_log_probabilities_are_told_off_the_event_loop(
    client: Client, fmt: ChatFormat, stream: bool, tokens: int, name: str
) -> None:
    """The event loop turns meanwhile."""
    engine = Scored(lambda _: iter([fmt.end_of_turn_id]), (fmt.end_of_turn_id,), max_context=100_000)
    ids = fmt.encode_text("a") * tokens
    asked = {"model": MODEL, "prompt": ids, "max_tokens": 0, "stream": stream, "echo": True, "logprobs": 5}
    async with client(engine) as http:
        response = await http.post(PATH, json=asked)
    assert response.status_code == 200, response.text
    assert engine.threads == {name}
    assert response.text.count('"a":') >= tokens - 1
