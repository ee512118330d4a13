"""The chat format with one tokenizer: conversations to ids (prompts, and training text with a loss mask), ids to text.

Sampling, budgets and HTTP are not known here; understanding what a model generates is parser.py's part.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

from chat_templates.detokenizer import Detokenizer, make_detokenizer
from chat_templates.errors import FormatError
from chat_templates.messages import Call, Message, Tool, Turn, check_messages, check_tools
from chat_templates.templates import CUT, Templates
from chat_templates.tokens import (
    ASSISTANT,
    END_OF_TURN,
    THINK,
    THINK_END,
    TOOL_CALL,
    TOOL_CALL_END,
    Vocabulary,
)

Mode = Literal["standard", "reasoning"]


class ChatFormat:
    r"""Renders and reads the format with one tokenizer.

        fmt = ChatFormat.from_folder(Path("models/twogear-tiny"))
        ids = fmt.render([{"role": "user", "content": "Hi"}], "reasoning")
        fmt.decode(ids, show_control=True)  # '[|user|]\nHi[|endofturn|]\n[|assistant|]\n<think>\n'

    Client text never becomes a control token, and control tokens never come back as text. `name` fields are accepted
    and not rendered: the format has no place for them.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.control_ids = vocabulary.control_ids
        self.think_id = vocabulary.control[THINK]
        self.think_end_id = vocabulary.control[THINK_END]
        self.end_of_turn_id = vocabulary.control[END_OF_TURN]
        self.tool_call_id = vocabulary.control[TOOL_CALL]
        self.tool_call_end_id = vocabulary.control[TOOL_CALL_END]
        self._assistant_id = vocabulary.control[ASSISTANT]
        self._templates = Templates(vocabulary.control)

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatFormat":
        """Reads tokenizer.json. Raises FileNotFoundError, or FormatError where it lacks the format's control tokens."""
        return cls(Vocabulary((folder / "tokenizer.json").read_text(encoding="utf-8")))

    def render(
        self,
        messages: Sequence[Message],
        mode: Mode,
        tools: Sequence[Tool] = (),
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """The prompt's ids, ending with the mode's generation prompt.

        Reasoning of past assistant turns is dropped. `continue_final_message` leaves the last message, an assistant's,
        open to be continued instead: in reasoning mode after its `reasoning_content`, if it has no content yet.
        Raises FormatError.
        """
        turns = check_messages(messages)
        if continue_final_message and turns[-1]["role"] != "assistant":
            raise FormatError("only an assistant message can be continued", f"messages[{len(turns) - 1}].role")
        add_generation_prompt = add_generation_prompt and not continue_final_message
        pieces = self._pieces(
            turns, mode, tools, add_generation_prompt=add_generation_prompt, is_open=continue_final_message
        )
        return [token_id for piece in pieces if piece is not None for token_id in piece]

    def render_conversation(
        self, messages: Sequence[Message], mode: Mode, tools: Sequence[Tool] = ()
    ) -> tuple[list[int], list[bool]]:
        r"""The ids of a conversation that ends with an assistant turn, and for each whether the model learns it.

        Learnt is what the model has to generate, up to and including the end of the turn: the answer, in reasoning
        mode the `reasoning_content` and `\n</think>\n\n` before it. In standard mode that goes for every assistant
        turn, for each is just what that mode generates; in reasoning mode only for the last one, since past turns have
        lost their reasoning. `render` of the messages before the last is an exact prefix. Raises FormatError.
        """
        turns = check_messages(messages)
        last = len(turns) - 1
        if turns[last]["role"] != "assistant":
            raise FormatError("a conversation to learn from ends with an assistant message", f"messages[{last}].role")
        pieces = list(self._pieces(turns, mode, tools, add_generation_prompt=False, is_open=False))
        last_turn = max(index for index, piece in enumerate(pieces) if piece == [self._assistant_id])
        ids: list[int] = []
        mask: list[bool] = []
        is_learnt = False
        for index, piece in enumerate(pieces):
            if piece is None:
                is_learnt = mode == "standard" or index > last_turn
                continue
            ids += piece
            mask += [is_learnt] * len(piece)
            is_learnt = is_learnt and piece != [self.end_of_turn_id]
        end = len(mask) - mask[::-1].index(True)
        return ids[:end], mask[:end]

    def encode_text(self, text: str) -> list[int]:
        """The ids of plain text; never a control token."""
        return self.vocabulary.encode(text)

    def close_thinking(self, wrap_up: str = "") -> list[int]:
        r"""The ids that end an open think block as the model itself would: `wrap_up` + `\n</think>\n\n`."""
        return [*self.encode_text(f"{wrap_up}\n"), self.think_end_id, *self.encode_text("\n\n")]

    def is_thinking_open(self, prompt_ids: Sequence[int]) -> bool:
        """Whether generation after this prompt starts inside a think block."""
        for token_id in reversed(prompt_ids):
            if token_id in (self.think_end_id, self.end_of_turn_id):
                return False
            if token_id == self.think_id:
                return True
        return False

    def decode(self, token_ids: Sequence[int], *, show_control: bool = False) -> str:
        """The text of the ids; control tokens are left out, or spelled out for a person to read."""
        detokenizer = self.detokenizer()
        texts = []
        for is_control, run in groupby(token_ids, self.control_ids.__contains__):
            if not is_control:
                texts += [detokenizer.feed(list(run)), detokenizer.flush()]
            elif show_control:
                texts += map(self.vocabulary.token_text, run)
        return "".join(texts)

    def detokenizer(self) -> Detokenizer:
        """A new incremental detokenizer."""
        return make_detokenizer(self.vocabulary)

    def _pieces(
        self, turns: list[Turn], mode: Mode, tools: Sequence[Tool], *, add_generation_prompt: bool, is_open: bool
    ) -> Iterator[list[int] | None]:
        """The ids of the rendered pieces in order; None where a generation starts (see templates.CUT)."""
        texts = self._templates.render(
            f"{mode}.jinja",
            messages=[self._protect(turn) for turn in turns],
            tools=self._templates.protect_all(check_tools(tools)),
            add_generation_prompt=add_generation_prompt,
            is_open=is_open,
        )
        for index, text in enumerate(texts):
            if index % 2 == 0:
                yield self.vocabulary.encode(text)
            else:
                yield None if text == CUT else [self.vocabulary.control[text]]

    def _protect(self, turn: Turn) -> Turn:
        protect = self._templates.protect
        calls: list[Call] = [
            {"name": protect(call["name"]), "arguments": self._templates.protect_all(call["arguments"])}
            for call in turn["tool_calls"]
        ]
        return {
            "role": turn["role"],
            "content": protect(turn["content"]),
            "reasoning_content": protect(turn["reasoning_content"]),
            "tool_calls": calls,
        }
