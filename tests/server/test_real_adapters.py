"""LoRA adapters through the whole path: `twogear serve`, three APIs, both modes, loaded and unloaded while it runs.

The reference is transformers with the adapter's products added to the weights. It computes in float32 and the server in
bfloat16, so a token that the server drew counts as right where the reference gives it nearly as much as its own best.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engine.adapter_files import WEIGHTS
from model_impl.weights import weights_format
from server.settings import EMBEDDED_MODEL
from tests.held_weights import held_weights
from tests.lora_adapters import save_adapter
from tests.real_server import RealServer

pytestmark = pytest.mark.engine
MODEL = "twogear-tiny"
TOKENS = 64
ALPHA = 32
"""Weaker adapters leave `38 + 45 = 83` as it is."""
LONGEST_WRAP_UP, LONGEST_END = 20, 2
END = 2
"""The token that ends a turn: what is drawn behind it, only because it is ignored, means nothing."""
NEAR = 0.5
"""Of a log-probability, more than bfloat16 makes of it: logits of 16 to 32 are 0.125 apart there."""
FAR = 2.0


class Served(NamedTuple):
    """A server with the adapters `first` and `second`, whose folders are those of these names in `root`."""

    server: RealServer
    root: Path

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.server.url}/v1/{path}", json=fields, timeout=120)

    def chat(self, model: str, question: str = "What is 38 + 45?", **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        options = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "return_token_ids": True}
        response = self.post("chat/completions", model=model, messages=messages, **options | fields)
        assert response.status_code == 200, response.text
        return dict(response.json())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("adapters")
    folders = [
        save_adapter(root / name, EMBEDDED_MODEL, seed=seed, lora_alpha=ALPHA) for seed, name in enumerate(NAMES, 1)
    ]
    modules = [f"{name}={folder}" for name, folder in zip(NAMES, folders, strict=True)]
    with RealServer(
        "--lora-modules", *modules, "--allow-runtime-lora-updating", "--max-loras", "2", "--verbose"
    ) as server:
        yield Served(server, root)
        assert server.stop() == 0


NAMES = ("first", "second")


@pytest.fixture(scope="module")
def reference(served: Served) -> Callable[[str, dict[str, Any]], list[float]]:
    """Tells, by token of an answer, how far its log-probability lies below that of the best, with an adapter's name."""

    @functools.cache
    def merged(name: str) -> Any:
        model = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
        model.load_state_dict(held_weights(model.state_dict(), weights_format()))
        tensors = {} if name == MODEL else load_file(served.root / name / WEIGHTS)
        with torch.no_grad():
            for parameter, weight in model.named_parameters():
                module = f"base_model.model.{parameter.removesuffix('.weight')}"
                if (first := tensors.get(f"{module}.lora_A.weight")) is not None:
                    weight.add_(ALPHA / len(first) * tensors[f"{module}.lora_B.weight"] @ first)
        return model

    def gaps(name: str, response: dict[str, Any]) -> list[float]:
        prompt, generated = response["prompt_token_ids"], response["choices"][0]["token_ids"]
        with torch.no_grad():
            logits = merged(name)(torch.tensor([prompt + generated])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        drawn = logits.gather(1, torch.tensor(generated)[:, None])[:, 0]
        return [float(gap) for gap in logits.max(-1).values - drawn]

    return gaps


Reference = Callable[[str, dict[str, Any]], list[float]]


def drawn(reference: Reference, name: str, response: dict[str, Any]) -> list[float]:
    """The gaps up to the end of the turn, without those of tokens that may have been said for the model where its
    thinking was closed.
    """
    thought = response["usage"]["completion_tokens_details"]["reasoning_tokens"]
    closing = range(thought - LONGEST_WRAP_UP, thought + LONGEST_END) if thought else range(0)
    ids = response["choices"][0]["token_ids"]
    end = ids.index(END) + 1 if END in ids else len(ids)
    return [gap for at, gap in enumerate(reference(name, response)[:end]) if at not in closing]


@pytest.mark.parametrize("name", [*NAMES, MODEL])
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_tokens_are_those_of_merged_weights(served: Served, reference: Reference, name: str, mode: str) -> None:
    response = served.chat(f"{name}:{mode}")
    assert response["model"] == name
    assert max(drawn(reference, name, response)) < NEAR
    for other in {*NAMES, MODEL} - {name}:
        assert max(drawn(reference, other, response)) > FAR, "the adapters are too weak for this test"


def test_the_answer_after_a_spent_budget_has_the_adapter_too(served: Served, reference: Reference) -> None:
    response = served.chat("first:reasoning", thinking_token_budget=30)
    (choice,) = response["choices"]
    assert choice["reasoning_finish_reason"] == "budget"
    assert response["usage"]["completion_tokens_details"]["reasoning_tokens"] == 30
    assert max(drawn(reference, "first", response)) < NEAR


def test_all_apis_answer_alike(served: Served) -> None:
    question = "What is 17 + 4?"
    for mode in ("standard", "reasoning"):
        model = f"second:{mode}"
        message = served.chat(model, question, ignore_eos=False)["choices"][0]["message"]
        common = {"model": model, "temperature": 0}
        answered = served.post("responses", input=question, max_output_tokens=TOKENS, **common).json()
        parts = [part for item in answered["output"] for part in item.get("content") or []]
        assert "".join(part["text"] for part in parts if part["type"] == "output_text") == message["content"]
        messages = [{"role": "user", "content": question}]
        written = served.post("messages", messages=messages, max_tokens=TOKENS, **common).json()
        blocks = {block["type"]: block.get("text") or block.get("thinking") for block in written["content"]}
        assert blocks.get("text", "") == message["content"]
        assert blocks.get("thinking") == message.get("reasoning_content")
        assert answered["model"] == written["model"] == "second"


def test_all_at_once(served: Served, reference: Reference) -> None:
    """In one batch, and what is thought beside what is answered at once."""
    cases = list(itertools.product((*NAMES, MODEL), ("standard", "reasoning"), ("What is 2 + 2?", "Say hello.")))

    def ask(case: tuple[str, str, str]) -> dict[str, Any]:
        name, mode, question = case
        return served.chat(f"{name}:{mode}", question)

    with ThreadPoolExecutor(len(cases)) as pool:
        for (name, _, _), response in zip(cases, pool.map(ask, cases), strict=True):
            assert max(drawn(reference, name, response)) < NEAR


def cached(served: Served, model: str, question: str) -> bool:
    usage = served.chat(model, question, max_tokens=1)["usage"]
    return bool((usage.get("prompt_tokens_details") or {}).get("cached_tokens"))


def test_prefix_caches_are_apart(served: Served) -> None:
    question = "Add up all of these. " + " ".join(map(str, range(100, 180)))
    names = [MODEL, "first", "second", "first", "second", MODEL]
    assert [cached(served, name, question) for name in names] == [False] * 3 + [True] * 3


def test_adapters_come_and_go(served: Served, reference: Reference) -> None:
    question = "Count them. " + " ".join(map(str, range(500, 560)))
    for name in NAMES:
        loaded = served.post("load_lora_adapter", lora_name="late", lora_path=str(served.root / name))
        assert loaded.status_code == 200, loaded.text
        assert not cached(served, "late", question)  # the one before had the same name
        assert cached(served, "late", question)
        assert max(drawn(reference, name, served.chat("late", question))) < NEAR
        assert served.post("unload_lora_adapter", lora_name="late").status_code == 200
        messages = [{"role": "user", "content": question}]
        assert served.post("chat/completions", model="late", messages=messages).status_code == 404
    nowhere = served.post("load_lora_adapter", lora_name="late", lora_path=str(served.root / "nowhere")).json()
    assert nowhere["error"]["param"] == "lora_path"


def test_they_are_listed_and_counted(served: Served) -> None:
    listed = httpx.get(f"{served.server.url}/v1/models").json()["data"]
    aliases = [f"{name}{mode}" for name in (MODEL, *NAMES) for mode in ("", ":standard", ":reasoning")]
    assert [model["id"] for model in listed] == aliases
    metrics = httpx.get(f"{served.server.url}/metrics").text
    assert 'vllm:lora_requests_info{max_lora="2",running_lora_adapters="",waiting_lora_adapters=""}' in metrics


def test_which_paths_are_off_is_in_the_log(served: Served) -> None:
    """On a CPU that has the native decode step, the adapters are the reason."""
    assert any("native decode step: off (" in one for one in served.server.output)
    assert any("adapters: on" in one for one in served.server.output)
