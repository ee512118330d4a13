"""Training data for tool calls and JSON answers: what is asked has its answer in it, held-out is held out."""

import json
import random
from itertools import count

import jsonschema
import pytest

from evals.tools import KINDS
from tasks import records, tool_use, values
from training import copying
from training.tokenizer import SPECIAL_TOKENS

SEEDS = range(200)
CALL_IDS = (f"call_{number}" for number in count())


def test_a_call_fits_the_schema_of_its_tool() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        tools = tool_use.tool_set(rng)
        schemas = {tool.name: tool.schema()["function"]["parameters"] for tool in tools}
        for tool in tools:
            for name, arguments in tool_use.use(tool, rng).calls:
                jsonschema.validate(arguments, schemas[name])


def test_every_argument_stands_in_the_request() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        use = tool_use.use(rng.choice(tool_use.tool_set(rng)), rng)
        for _, arguments in use.calls:
            assert all(str(value) in use.request for value in arguments.values())


def test_a_conversation_with_a_tool_is_one_that_clients_send() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        use = tool_use.use(rng.choice(tool_use.tool_set(rng)), rng)
        messages = tool_use.exchange(use, CALL_IDS)
        roles = [message["role"] for message in messages]
        if not use.calls:
            assert roles == ["user", "assistant"]
            continue
        assert roles == ["user", "assistant", *["tool"] * len(use.calls), "assistant"]
        asked = [call["id"] for call in messages[1]["tool_calls"]]
        assert [message["tool_call_id"] for message in messages[2:-1]] == asked


def test_a_record_stands_in_its_request() -> None:
    for seed in SEEDS:
        extraction = records.draw(random.Random(seed))
        assert json.loads(extraction.answer) == extraction.record
        assert all(str(value) in extraction.request for value in extraction.record.values())


def test_held_out_calls_and_records_are_never_trained_on() -> None:
    rng = random.Random(1)
    for held_out in (True, False):
        for _ in range(200):
            tool = tool_use.tool_set(rng)[0]
            use = tool_use.use(tool, rng, held_out=held_out)
            for _, arguments in use.calls:
                assert tool_use.is_held_out(list(arguments.values())) == held_out


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_made_of_held_out_requests(kind: str) -> None:
    rng = random.Random(2)
    for _ in range(50):
        request = KINDS[kind](rng)
        if kind == "call":
            assert all(tool_use.is_held_out(list(call["arguments"].values())) for call in request.expected)
        elif kind in ("json", "schema"):
            text = request.body["messages"][0]["content"]
            assert all(str(value) in text for value in request.expected.values())


def test_made_up_values_are_rare_and_there() -> None:
    rng = random.Random(3)
    drawn = [values.draw("city", rng) for _ in range(1000)]
    made_up = sum(value not in values.pools()["city"] for value in drawn)
    assert 50 < made_up < 300


def test_an_unknown_pool_is_an_error() -> None:
    with pytest.raises(KeyError):
        values.draw("planet", random.Random(1))


def test_no_training_text_spells_a_control_token() -> None:
    rng = random.Random(4)
    for _ in range(300):
        use = tool_use.use(rng.choice(tool_use.tool_set(rng)), rng)
        text = " ".join((use.request, use.thought, use.reply, *use.results, records.draw(rng).request))
        assert not any(token in text for token in SPECIAL_TOKENS)


def test_a_drill_asks_for_nothing_that_it_does_not_say() -> None:
    for seed in SEEDS:
        drill = copying.draw(random.Random(seed), ("tree", "cloud"))
        answer = json.loads(drill.answer) if drill.answer[0] in "[{" else drill.answer.split()
        words = [*answer, *answer.values()] if isinstance(answer, dict) else answer
        said = drill.request.lower().replace(" ", "_")
        assert all(str(word).lower().replace(" ", "_") in said for word in words)
