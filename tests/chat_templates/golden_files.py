"""The content of the golden files: prompts and training text in readable form, and their ids."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from chat_templates.format import ChatFormat
from tests.chat_templates.conversations import CONVERSATIONS
from tests.chat_templates.small_tokenizers import make_format
from tests.styles import STYLES, Mode

FOLDER = Path(__file__).parent / "golden"
_LEGEND = "⟦control token⟧ ⏎ newline ░learnt░; ids of the byte-level tokenizer in small_tokenizers.py"
Kind = Literal["prompt", "training"]


def golden_files() -> Iterator[tuple[Path, str]]:
    """Path and content of every golden file: prompts of all conversations, training text of those that end answered."""
    fmt = make_format()
    for name, (messages, _) in CONVERSATIONS.items():
        for mode in get_args(Mode):
            yield FOLDER / f"{name}.{mode}.txt", golden_text(fmt, name, mode, "prompt")
            if messages[-1]["role"] == "assistant":
                yield FOLDER / f"{name}.{mode}.training.txt", golden_text(fmt, name, mode, "training")


def golden_text(fmt: ChatFormat, name: str, mode: Mode, kind: Kind) -> str:
    """One golden file."""
    messages, tools = CONVERSATIONS[name]
    if kind == "prompt":
        ids = fmt.render(messages, STYLES[mode], tools)
        mask = [False] * len(ids)
    else:
        ids, mask = fmt.render_conversation(messages, STYLES[mode], tools)
    numbers = textwrap.fill(" ".join(map(str, ids)), width=110)
    return f"{_LEGEND}\n\n{readable(fmt, ids, mask)}\n\n{len(ids)} ids\n{numbers}\n"


def readable(fmt: ChatFormat, ids: list[int], mask: list[bool]) -> str:
    """The text with control tokens, newlines and the learnt part made visible."""
    text, start = "", 0
    for end in range(1, len(ids) + 1):
        is_control = ids[end - 1] in fmt.control_ids
        is_last = end == len(ids) or is_control or ids[end] in fmt.control_ids or mask[end] != mask[end - 1]
        if not is_last:
            continue
        shown = fmt.decode(ids[start:end], show_control=True).replace("\n", "⏎\n")
        shown = f"⟦{shown}⟧" if is_control else shown
        text += f"░{shown}░" if mask[end - 1] else shown
        start = end
    return text.replace("░░", "")
