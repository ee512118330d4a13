"""Held-out questions as the embedded model's engine is given them."""

from itertools import cycle

from chat_templates.format import ChatFormat
from server.settings import EMBEDDED_MODEL
from tasks.families import held_out_items
from tests.styles import STYLES


def prompts(count: int) -> list[list[int]]:
    """Token ids of so many prompts, of both modes by turns."""
    fmt = ChatFormat.from_folder(EMBEDDED_MODEL)
    items = held_out_items(["chain_sum", "spell_backward", "count_bits"], count, 0)
    return [
        fmt.render([{"role": "user", "content": item.question}], style)
        for item, style in zip(items, cycle(STYLES.values()), strict=False)
    ]
