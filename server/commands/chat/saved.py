"""Files of conversations: the form in which the page at `/` exports and imports them (`ui/src/chat/saved.ts`)."""

from collections.abc import Sequence

import msgspec

from server.commands.chat.conversation import SAMPLING, Conversation, ModelTurn, Settings

FORMAT = "twogear-conversations"
FORMAT_VERSION = 1
CUT = "It was saved before the answer ended."


class NotSavedError(Exception):
    """Bytes that are no saved conversations; the message says what is wrong."""


class _Head(msgspec.Struct):
    format: str = ""
    version: int | float | str | None = None


class _File(msgspec.Struct):
    conversations: list[Conversation]


def exported(conversations: Sequence[Conversation]) -> bytes:
    """A file that the page imports."""
    file = {"format": FORMAT, "version": FORMAT_VERSION, "conversations": conversations}
    return msgspec.json.format(msgspec.json.encode(file), indent=2)


def imported(content: bytes) -> list[Conversation]:
    """The conversations of a file that was exported here or in the page. Raises NotSavedError."""
    try:
        head = msgspec.json.decode(content, type=_Head)
    except msgspec.ValidationError as error:
        raise NotSavedError(f"it is no file of conversations: {error}") from error
    except msgspec.DecodeError as error:
        raise NotSavedError("it is no JSON") from error
    if head.format != FORMAT:
        raise NotSavedError(f'it is no file of conversations: its "format" is not "{FORMAT}"')
    if head.version != FORMAT_VERSION:
        raise NotSavedError(f"it has version {head.version}, and this is read: version {FORMAT_VERSION}")
    try:
        conversations = msgspec.json.decode(content, type=_File).conversations
    except msgspec.ValidationError as error:
        tools = " (calls of tools are for the page alone)" if "'tool'" in str(error) else ""
        raise NotSavedError(f"{error}{tools}") from error
    if not conversations:
        raise NotSavedError("there is no conversation in it")
    for conversation in conversations:
        _check(conversation)
    return conversations


def _check(conversation: Conversation) -> None:
    """What the types do not say. Raises NotSavedError."""
    turns = conversation.turns
    if len(turns) % 2 or any(isinstance(turn, ModelTurn) != bool(at % 2) for at, turn in enumerate(turns)):
        raise NotSavedError("in it, messages and answers do not follow each other in turn")
    for _, answered in conversation.exchanges():
        if not 0 <= answered.chosen < len(answered.runs):
            raise NotSavedError(f"the chosen answer, {answered.chosen}, is none of {len(answered.runs)}")
        for run in answered.runs:
            run.progress.stalled = False
            if run.progress.phase in ("waiting", "thinking", "answering"):  # it ran when the page kept it
                run.progress.phase, run.progress.error = "failed", CUT
    _settle(conversation.settings)


def _settle(settings: Settings) -> None:
    """Leaves out what was left empty in the page. Raises NotSavedError for what cannot be sent."""
    settings.sampling = {name: value.strip() for name, value in settings.sampling.items() if value.strip()}
    settings.budget = settings.budget.strip()
    if settings.budget and not (settings.budget.isascii() and settings.budget.isdigit()):
        raise NotSavedError(f"its thinking budget, {settings.budget}, is no number of tokens")
    for name, value in settings.sampling.items():
        if name not in SAMPLING:
            raise NotSavedError(f"it sets {name}; what can be set is {', '.join(SAMPLING)}")
        try:
            SAMPLING[name](value)
        except ValueError as error:
            raise NotSavedError(f"its {name}, {value}, is no number") from error
