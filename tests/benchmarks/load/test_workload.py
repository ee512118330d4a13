"""Prompts and requests: exact lengths, no common prefixes, the same for every server; and the made-up tokenizer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

from benchmarks.load.checkpoints import CONTROL_TOKENS, syllable_tokenizer
from benchmarks.load.workload import SUITES, Load, Prompts, requests
from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from server.settings import EMBEDDED_MODEL

if TYPE_CHECKING:
    from chat_templates.messages import Message

LOAD = Load(streams=2, mode="half", prompt_tokens=100, output_tokens=16, requests=6, limit=9, warm_up=3)


@pytest.fixture(scope="module", params=["embedded", "syllables"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "embedded":
        return EMBEDDED_MODEL
    path = tmp_path_factory.mktemp("syllables")
    (path / "tokenizer.json").write_text(json.dumps(syllable_tokenizer(4000)))
    return path


@pytest.mark.parametrize("tokens", [20, 21, 100, 2000])
def test_a_prompt_has_exactly_so_many_tokens(folder: Path, tokens: int) -> None:
    prompts = Prompts(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [prompts.text(tokens, f"seed {number}") for number in range(20)]
    assert {len(tokenizer.encode(text, add_special_tokens=False)) for text in texts} == {tokens}
    assert len({text[:40] for text in texts}) == 20, "no prefix cache helps"
    assert texts[3] == prompts.text(tokens, "seed 3")


def test_ids_are_those_of_our_front_end() -> None:
    fmt = ChatFormat.from_folder(EMBEDDED_MODEL)
    text = Prompts(EMBEDDED_MODEL).text(50, "seed")
    message: Message = {"role": "user", "content": text}
    assert Prompts(EMBEDDED_MODEL).ids(text, thinks=False) == fmt.render([message], DIRECT)
    assert Prompts(EMBEDDED_MODEL).ids(text, thinks=True) == fmt.render([message], THINKING)


def test_requests_of_a_mixed_load() -> None:
    wanted = requests(LOAD, Prompts(EMBEDDED_MODEL), "1")
    assert [request.thinks for request in wanted] == [False, True] * 3
    for request in wanted:
        body = request.body
        assert body["chat_template_kwargs"] == {"enable_thinking": request.thinks}
        assert body["temperature"] == (0.6 if request.thinks else 0.0)
        assert (body["max_tokens"], body["ignore_eos"]) == (16, True)
    warm_up = requests(LOAD, Prompts(EMBEDDED_MODEL), "1", warm_up=True)
    assert {request.body["max_tokens"] for request in warm_up} == {3}
    texts = [request.body["messages"][0]["content"] for request in [*wanted, *warm_up]]
    assert len(set(texts)) == 12


def test_names_tell_the_loads_of_a_suite_apart() -> None:
    for loads in SUITES.values():
        assert len({load.name for load in loads}) == len(loads)
        assert all(load.requests % load.streams == 0 for load in loads)


def test_the_syllable_tokenizer_has_its_size_and_cuts_words_in_one_way() -> None:
    spec = syllable_tokenizer(20_000)
    vocabulary = spec["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(20_000))
    assert [token["id"] for token in spec["added_tokens"]] == list(range(CONTROL_TOKENS))
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    words = [token for token in vocabulary if token.startswith("Ġ") and len(token) > 2]
    assert len(words) > 10_000
    for word in words[::97]:
        assert tokenizer.encode(f" {word[1:]}", add_special_tokens=False).tokens == [word]
    text = "[|user|]\nWhat is 12 + 30?\n\n  Süß 🚀[|endofturn|]\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
