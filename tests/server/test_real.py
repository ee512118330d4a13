"""The whole path with the embedded checkpoint: clients, `twogear serve`, vLLM."""

import asyncio
import json
import math
import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from chat_templates.format import ChatFormat
from server.settings import EMBEDDED_MODEL
from tests.real_server import TWOGEAR, RealServer
from tests.server.conftest import MODEL
from tests.styles import STYLES

pytestmark = pytest.mark.engine
CHAT = "/v1/chat/completions"


def ask(server: RealServer, question: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    response = httpx.post(server.url + CHAT, json={"messages": messages, **fields}, timeout=120)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_the_last_line_is_a_curl_to_paste(real_server: RealServer) -> None:
    line = next(line for line in real_server.output if line.startswith("Ready after"))
    command = line.partition("try: ")[2]
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["object"] == "chat.completion"


def test_the_modes_differ(real_server: RealServer) -> None:
    question = "What is 38 + 45?"
    direct = ask(real_server, question)
    reasoned = ask(real_server, question, reasoning_mode="reasoning", max_tokens=400)
    assert "reasoning_content" not in direct["choices"][0]["message"]
    assert direct["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert reasoned["choices"][0]["message"]["reasoning_content"]
    assert reasoned["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_the_sdk_in_five_lines(real_server: RealServer) -> None:
    client = openai.OpenAI(base_url=f"{real_server.url}/v1", api_key="none")
    for mode in ("standard", "reasoning"):
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], extra_body={"reasoning_mode": mode}
        )
        assert answer.choices[0].message.content is not None
    client.close()


def test_an_unknown_mode_is_refused(real_server: RealServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "reasoning_mode": "deep"}
    response = httpx.post(real_server.url + CHAT, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "reasoning_mode")


@pytest.mark.parametrize("budget", [0, 1, 7, 30])
@pytest.mark.parametrize("extra", [{}, {"min_tokens": 2}])
def test_budgets_are_exact(real_server: RealServer, budget: int, extra: dict[str, Any]) -> None:
    result = ask(
        real_server, "What is 123 + 456 + 789?", reasoning_mode="reasoning", thinking_token_budget=budget,
        max_tokens=budget + 40, ignore_eos=True, temperature=0, **extra,
    )  # fmt: skip
    (choice,) = result["choices"]
    spent = result["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert spent <= budget
    assert choice["reasoning_finish_reason"] == "natural" or spent == budget
    assert choice["message"]["content"]
    assert result["usage"]["completion_tokens"] == budget + 40


async def test_greedy_answers_are_the_same_alone_and_under_load(real_server: RealServer) -> None:
    async with httpx.AsyncClient(base_url=real_server.url, timeout=120) as http:

        async def answer(question: str, **fields: Any) -> tuple[str, int]:
            body = {"messages": [{"role": "user", "content": question}], **fields}
            result = (await http.post(CHAT, json=body)).json()
            return result["choices"][0]["message"]["content"], result["usage"]["completion_tokens"]

        alone = [await answer("What is 17 + 25 + 9?") for _ in range(20)]
        load = [
            asyncio.create_task(answer(f"What is {n} + 4?", reasoning_mode="reasoning", max_tokens=64, ignore_eos=True))
            for n in range(16)
        ]
        loaded = [await answer("What is 17 + 25 + 9?") for _ in range(20)]
        await asyncio.gather(*load)
    assert set(loaded) == set(alone)
    assert len(set(alone)) == 1


def test_streaming_equals_not_streaming(real_server: RealServer) -> None:
    for mode in ("standard", "reasoning"):
        fields = {"reasoning_mode": mode, "temperature": 0, "max_tokens": 120}
        whole = ask(real_server, "Spell 'abc' backward.", **fields)
        client = openai.OpenAI(base_url=f"{real_server.url}/v1", api_key="none")
        *chunks, last = client.chat.completions.create(
            model=f"{MODEL}:{mode}", messages=[{"role": "user", "content": "Spell 'abc' backward."}], temperature=0,
            max_tokens=120, stream=True, stream_options={"include_usage": True},
        )  # fmt: skip
        client.close()
        message = whole["choices"][0]["message"]
        deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks]
        for name in ("content", "reasoning_content"):
            assert "".join(delta.get(name) or "" for delta in deltas) == message.get(name, "")
        assert last.usage is not None
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert [getattr(last.usage, name) for name in counts] == [whole["usage"][name] for name in counts]


def test_log_probabilities_are_the_models(real_server: RealServer) -> None:
    fields = {"temperature": 0, "max_tokens": 60, "logprobs": True, "top_logprobs": 3, "reasoning_logprobs": True}
    (choice,) = ask(real_server, "What is 38 + 45?", reasoning_mode="reasoning", **fields)["choices"]
    answer, thinking = choice["logprobs"]["content"], choice["logprobs"]["reasoning"]
    assert "".join(entry["token"] for entry in answer) == choice["message"]["content"]
    assert "".join(entry["token"] for entry in thinking).startswith(choice["message"]["reasoning_content"])
    for entry in answer + thinking:
        likeliest = entry["top_logprobs"]
        assert len(likeliest) == 3
        assert (entry["token"], entry["logprob"]) == (likeliest[0]["token"], likeliest[0]["logprob"])  # greedy
        assert sum(math.exp(other["logprob"]) for other in likeliest) <= 1.001


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "maximum": 9, "minimum": 1},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("mode", STYLES)
@pytest.mark.parametrize("budget", [{}, {"thinking_token_budget": 3}])
def test_a_grammar_binds_the_answer_and_not_the_thinking(
    real_server: RealServer, mode: str, budget: dict[str, int]
) -> None:
    if mode == "standard" and budget:
        pytest.skip("thinks not")
    schema: dict[str, Any] = {"type": "object", "properties": {"sum": {"enum": [83, 38, 45]}}, "required": ["sum"]}
    schema["additionalProperties"] = False
    json_schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    forms: list[tuple[dict[str, Any], str]] = [
        ({"response_format": json_schema}, r'{"sum": \d\d}'),
        ({"structured_outputs": {"regex": "[A-Z]{3}-[0-9]{2}"}}, "[A-Z]{3}-[0-9]{2}"),
        ({"structured_outputs": {"choice": ["yes", "no\n\n"]}}, "yes|no\n\n"),
        ({"structured_outputs": {"grammar": 'root ::= "(" inner ")"\ninner ::= "x" | "y"'}}, r"\([xy]\)"),
    ]
    for form, matches in forms:
        result = ask(real_server, "What is 38 + 45?", reasoning_mode=mode, max_tokens=400, **budget, **form)
        (choice,) = result["choices"]
        assert re.fullmatch(matches, choice["message"]["content"]), (form, choice)
        assert choice["finish_reason"] == "stop"
        if mode == "reasoning":
            assert choice["message"]["reasoning"]


def test_a_grammar_binds_a_text_completion(real_server: RealServer) -> None:
    for prompt in ("What is 38 + 45?", ["Hi", "38 + 45 ="]):
        body = {"prompt": prompt, "structured_outputs": {"regex": "[A-Z]{3}-[0-9]{2}"}, "max_tokens": 30}
        response = httpx.post(f"{real_server.url}/v1/completions", json=body, timeout=120)
        assert response.status_code == 200, response.text
        for choice in response.json()["choices"]:
            assert re.fullmatch("[A-Z]{3}-[0-9]{2}", choice["text"]), choice
            assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("mode", STYLES)
def test_a_forced_tool_call_fits_its_schema(real_server: RealServer, mode: str) -> None:
    fields = {"tools": [WEATHER], "reasoning_mode": mode, "max_tokens": 300, "parallel_tool_calls": False}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        result = ask(real_server, "How is the weather in Rome?", tool_choice=choice, **fields)
        (answer,) = result["choices"]
        (call,) = answer["message"]["tool_calls"]
        finish = "tool_calls" if choice == "required" else "stop"  # as OpenAI
        assert (answer["finish_reason"], call["function"]["name"]) == (finish, "weather")
        arguments = json.loads(call["function"]["arguments"])
        assert arguments["city"] in ("Paris", "Rome")
        assert 1 <= arguments["days"] <= 9


def test_a_pattern_that_explodes_disturbs_nobody(real_server: RealServer) -> None:
    regexes = ["(.*a){1,20}.{1000}", "((a{1,1000}){1,1000}){1,1000}", "(x+x+)+y", "(a|b)*a(a|b){1000}"]
    for regex in regexes:
        result = ask(real_server, "Hi", structured_outputs={"regex": regex}, max_tokens=30)
        assert result["usage"]["completion_tokens"] <= 30
    assert ask(real_server, "Hi")["choices"][0]["message"]["content"]


@pytest.mark.parametrize("item", [{"type": "boolean"}, {"enum": [True]}], ids=["two values", "one value"])
def test_a_long_list_that_is_forced_costs_others_no_step(real_server: RealServer, item: dict[str, Any]) -> None:
    """Where the library tokenized the forced text anew, each of its tokens took a third of a second of every step."""
    schema = {"type": "array", "items": item, "minItems": 40_000}
    asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    tokens, ticks = 150, os.sysconf("SC_CLK_TCK")
    ask(real_server, "Hi", **asked, max_tokens=2)  # what compiles is compiled

    def computed() -> float:
        fields = Path(f"/proc/{real_server.engine_pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    before = computed()
    with ThreadPoolExecutor(2) as threads:
        listed = threads.submit(ask, real_server, "Hi", **asked, max_tokens=tokens)
        beside = threads.submit(ask, real_server, "Hi", max_tokens=tokens, ignore_eos=True)
        result, other = listed.result(), beside.result()
    (choice,) = result["choices"]
    assert (choice["finish_reason"], result["usage"]["completion_tokens"]) == ("length", tokens)
    assert re.fullmatch(r"\[(true, |false, ){20,}\w*,? ?", choice["message"]["content"])
    assert other["usage"]["completion_tokens"] == tokens
    assert computed() - before < 15  # seconds, of which it takes about one; 150 thirds are 50


def test_a_client_ends_the_thinking(real_server: RealServer) -> None:
    fmt = ChatFormat.from_folder(EMBEDDED_MODEL)
    body = {
        "messages": [{"role": "user", "content": "What is 123 + 456 + 789?"}], "reasoning_mode": "reasoning",
        "stream": True, "logit_bias": {str(fmt.think_end_id): -100, str(fmt.end_of_turn_id): -100}, "n": 2,
    }  # fmt: skip
    answered: set[int] = set()
    with httpx.stream("POST", real_server.url + CHAT, json=body, timeout=120) as response:
        lines = (json.loads(line[6:]) for line in response.iter_lines() if line)
        path = f"{real_server.url}{CHAT}/{next(lines)['id']}/control"
        assert httpx.post(path, json={"action": "end_reasoning"}).json()["choices"] == [0, 1]
        for chunk in lines:
            (choice,) = chunk["choices"]
            assert choice["finish_reason"] is None
            if choice["delta"].get("content"):
                answered.add(choice["index"])
            if answered == {0, 1}:
                break


def test_echo_scores_a_prompt_as_its_generation_did(real_server: RealServer) -> None:
    # Control tokens have no text and so no entry here. A bias leaves the probabilities that are told as they are.
    no_control = {str(token_id): -100 for token_id in ChatFormat.from_folder(EMBEDDED_MODEL).control_ids}

    def post(**fields: Any) -> dict[str, Any]:
        body = {"temperature": 0, "logprobs": 2, "max_tokens": 8, "logit_bias": no_control, **fields}
        response = httpx.post(f"{real_server.url}/v1/completions", json=body, timeout=120)
        assert response.status_code == 200, response.text
        return dict(response.json()["choices"][0])

    # A text that goes on likely: bfloat16 moves the logarithm of what is hardly possible by more.
    text = "1 dog, 2 cat, 3 sun"
    written = post(prompt=text, ignore_eos=True, return_token_ids=True)
    entries = written["logprobs"]["token_logprobs"]
    assert len(entries) == len(written["token_ids"]) == 8
    ids = [*written["prompt_token_ids"], *written["token_ids"]]
    scored = post(prompt=ids, echo=True, max_tokens=0)["logprobs"]
    assert len(scored["token_logprobs"]) == len(ids)
    assert scored["token_logprobs"][0] is None
    assert scored["token_logprobs"][-8:] == pytest.approx(entries, abs=0.2)
    together = post(prompt=text, ignore_eos=True, echo=True)["logprobs"]
    assert together["tokens"][-8:] == written["logprobs"]["tokens"]


def test_choices_differ_and_can_be_had_again(real_server: RealServer) -> None:
    def answers(**fields: Any) -> list[str]:
        result = ask(real_server, "Tell me something.", temperature=2.0, max_tokens=20, **fields)
        return [choice["message"]["content"] for choice in result["choices"]]

    several = answers(n=4, seed=11)
    assert len(set(several)) > 1
    assert several == answers(n=4, seed=11)
    assert several[1] == answers(seed=12)[0]


async def test_a_seed_answers_the_same_alone_and_under_load(real_server: RealServer) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.3},
        {"temperature": 1.5, "top_p": 0.9},
        {"temperature": 2.0, "top_k": 30, "min_p": 0.01},
        {"temperature": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"temperature": 1.2, "repetition_penalty": 1.3},
    ]
    async with httpx.AsyncClient(base_url=real_server.url, timeout=120) as http:

        async def answer(seed: int, fields: dict[str, Any]) -> str:
            messages = [{"role": "user", "content": "Tell me something."}]
            body = {"messages": messages, "seed": seed, "max_tokens": 16, "ignore_eos": True, **fields}
            return str((await http.post(CHAT, json=body)).json()["choices"][0]["message"]["content"])

        alone = [await answer(seed, fields) for seed, fields in enumerate(kinds)]
        together = await asyncio.gather(*(answer(seed, fields) for seed, fields in enumerate(kinds * 2)))
    assert together[: len(kinds)] == alone
    assert alone != together[len(kinds) :]  # the same kinds with other seeds


def test_a_killed_engine_comes_back(real_server: RealServer) -> None:
    question = "What is 6 + 7?"
    before = ask(real_server, question)["choices"]
    os.kill(real_server.engine_pid, signal.SIGKILL)
    lost = real_server.wait_until(503)
    assert int(lost.headers["retry-after"]) > 0
    response = httpx.post(real_server.url + CHAT, json={"messages": [{"role": "user", "content": question}]})
    assert response.status_code == 503
    real_server.wait_until(200)
    assert ask(real_server, question)["choices"] == before


def test_a_model_that_the_engine_cannot_load_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchForCausalLM"]}))
    command = [str(TWOGEAR), "serve", str(folder), "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    *_, last = result.stderr.splitlines()
    assert result.returncode == 2
    assert last.startswith("twogear: error: ")
    assert "NoSuchForCausalLM" in last
