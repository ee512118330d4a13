"""What counts as one mode behaving like the other, of texts and through the server with a scripted engine."""

from collections.abc import Iterator

import pytest

from evals import confusion
from evals import modes as eval_modes
from tasks.families import FAMILIES, Item, held_out_items
from tests.evals.test_eval import FMT, reading, server_of, writes

ITEM = Item("chain_sum", "What is 47 - 14?", "33", "47-14:7-4-0=03,4-1-0=03>33", {})


@pytest.mark.parametrize(
    ("answer", "generated", "signs"),
    [
        ("33", "33[|endofturn|]", []),
        ("-1033", "-1033[|endofturn|]", []),
        ("", "", []),
        ("33", "</think>\n\n33[|endofturn|]", ["tag"]),
        ("", "<think>\n47-14", ["tag"]),
        ("47-14:7-4-0=03,4-1-0=03>33", "47-14:7-4-0=03,4-1-0=03>33", ["trace", "long"]),
        ("47-14:7-4-0=03\n4-1-0=07", "47-14:7-4-0=03\n4-1-0=07", ["long"]),
        ("3" * 40, "3" * 40, ["long"]),
    ],
)
def test_standard_mode_that_thinks(answer: str, generated: str, signs: list[str]) -> None:
    assert confusion.direct_signs(ITEM, answer, generated) == signs


@pytest.mark.parametrize(
    ("thought", "finish_reason", "signs"),
    [
        (ITEM.trace, "natural", []),
        (ITEM.trace + "\n" + ITEM.trace, "natural", []),
        ("", "natural", ["empty"]),
        ("\n", "natural", ["empty"]),
        ("33", "natural", ["short"]),
        ("4-1-0=03>33", "natural", []),
        (ITEM.trace * 20, "budget", ["unclosed"]),
        (ITEM.trace, "confident", []),
        ("47", "stopped", ["short", "unclosed"]),
        ("", None, ["empty", "unclosed"]),
    ],
)
def test_reasoning_mode_that_does_not(thought: str, finish_reason: str | None, signs: list[str]) -> None:
    assert confusion.thinking_signs(ITEM, thought, finish_reason) == signs


@pytest.mark.parametrize("name", list(FAMILIES))
def test_right_behaviour_has_no_signs(name: str) -> None:
    for item in held_out_items((name,), 30, 1):
        assert confusion.direct_signs(item, item.answer, item.answer) == [], item
        assert confusion.thinking_signs(item, item.trace, "natural") == [], item
        assert "long" in confusion.direct_signs(item, item.trace, item.trace), item
        assert confusion.thinking_signs(item, item.answer, "natural") == ["short"], item


async def test_a_server_whose_modes_are_swapped_is_all_confusion() -> None:
    items = list(held_out_items(("chain_sum",), 6, 0))
    by_question = {item.question.strip(): item for item in items}

    def swapped(prompt_ids: list[int]) -> Iterator[int]:
        question, said = reading(prompt_ids)
        item = by_question[question]
        if "</think>" in said:
            yield from writes(f"{item.trace}\n{item.answer}")
        else:
            yield from writes(f"{item.answer}</think>{item.answer}")

    async with server_of(swapped) as (server, _):
        modes = await server.modes()
        _, outcomes = await eval_modes.measure(server, items, modes)
    found = eval_modes.summarize(("chain_sum",), outcomes, modes)
    assert modes == {"standard": "direct", "reasoning": "thinking"}
    assert found["confusion"]["standard"] == {"any": 1.0, "tag": 0.0, "trace": 1.0, "long": 1.0}
    assert found["confusion"]["reasoning"] == {"any": 1.0, "empty": 0.0, "short": 1.0, "unclosed": 0.0}
    assert found["summary"]["reasoning"] == 1.0


async def test_tags_that_nobody_is_shown_and_thoughts_without_end_are_seen() -> None:
    items = list(held_out_items(("chain_sum",), 2, 0))

    def thinks(prompt_ids: list[int]) -> Iterator[int]:
        """Opens a thought in standard mode; in reasoning mode it goes on for ever."""
        if "</think>" in reading(prompt_ids)[1]:
            yield FMT.think_id
        while True:
            yield from FMT.encode_text("1+1 ")

    async with server_of(thinks) as (server, _):
        modes = await server.modes()
        _, outcomes = await eval_modes.measure(server, items, modes, most_tokens=256)
    standard, reasoning = ([o for o in outcomes if o.mode == mode] for mode in modes)
    assert all("tag" in outcome.confusion and "<think>" not in outcome.answer for outcome in standard)
    assert [outcome.confusion for outcome in reasoning] == [["unclosed"]] * 2
    assert all(outcome.completion_tokens == 256 for outcome in outcomes)
