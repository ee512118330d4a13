"""What can be typed beside messages: lines that begin with a slash."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from server.commands.chat.conversation import SAMPLING, Conversation, Mode, Model
from server.commands.chat.display import Display
from server.commands.chat.saved import NotSavedError, exported, imported

OFF = "off"


class CommandError(Exception):
    """A command that cannot be carried out; the message says what would be right."""


class Chat(Protocol):
    """What the commands change."""

    display: Display
    models: Sequence[Model]
    conversation: Conversation
    saved_to: Path | None
    left: bool

    @property
    def model(self) -> Model:
        """The model that is asked."""

    @property
    def mode(self) -> Mode:
        """The mode that is asked."""

    def new(self) -> None:
        """Begins another conversation with the same settings."""

    async def ask(self, text: str, modes: Sequence[Mode]) -> None:
        """Asks in each of the modes, and shows the answers."""


@dataclass(frozen=True)
class Command:
    """One of them. `form`: its arguments; `words`: what may stand there, to be completed."""

    form: str
    about: str
    call: Callable[[Chat, str], Awaitable[None] | None]
    words: Callable[[Chat], Sequence[str]] = lambda _: ()


async def run_command(chat: Chat, line: str) -> None:
    """Carries out a line that begins with a slash. Raises CommandError."""
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f" did you mean {close[0]}?" if close else ""
        raise CommandError(f"There is no {name};{hint or ' /help tells what there is.'} A message may begin with //.")
    if (answering := COMMANDS[name].call(chat, argument.strip())) is not None:
        await answering


def words_of(chat: Chat) -> Mapping[str, Sequence[str]]:
    """All commands, each with what may stand after it."""
    return {name: command.words(chat) for name, command in COMMANDS.items()}


def mode_of(chat: Chat, name: str) -> Mode:
    """The mode of this name; raises CommandError."""
    if (mode := chat.model.mode(name)) is None:
        raise CommandError(f"There is no mode {name!r}; {chat.model.name} has {', '.join(_mode_names(chat))}.")
    return mode


def _mode_names(chat: Chat) -> list[str]:
    return [mode.name for mode in chat.model.modes]


def _mode(chat: Chat, name: str) -> None:
    if name:
        chat.conversation.settings.mode = mode_of(chat, name).name
    else:
        chat.display.note(f"The mode is {chat.mode.name}; {chat.model.name} has {', '.join(_mode_names(chat))}.")


def _model(chat: Chat, name: str) -> None:
    names = [model.name for model in chat.models]
    if name and name not in names:
        raise CommandError(f"There is no model {name!r}; the server has {', '.join(names)}.")
    if name:
        chat.conversation.settings.model = name
    else:
        chat.display.note(f"The model is {chat.model.name}; the server has {', '.join(names)}.")


def _budget(chat: Chat, typed: str) -> None:
    settings = chat.conversation.settings
    if typed == OFF:
        settings.budget = ""
    elif typed:
        if not (typed.isascii() and typed.isdigit()):
            raise CommandError(f"/budget {typed}: a number of tokens is needed, as /budget 500, or /budget off.")
        settings.budget = str(int(typed))
    said = f"at most {settings.budget} tokens" if settings.budget else "as much as the mode allows"
    chat.display.note(f"Modes that think do so with {said}.")


def _system(chat: Chat, text: str) -> None:
    settings = chat.conversation.settings
    if text:
        settings.system = "" if text == OFF else text
    chat.display.note(f"The system prompt: {settings.system}" if settings.system else "There is no system prompt.")


def _set(chat: Chat, typed: str) -> None:
    sampling = chat.conversation.settings.sampling
    name, _, value = typed.partition(" ")
    value = value.strip()
    if name and name not in SAMPLING:
        raise CommandError(f"/set {name}: there is no such field; there are {', '.join(SAMPLING)}.")
    if name and value == OFF:
        sampling.pop(name, None)
    elif name:
        try:
            SAMPLING[name](value)
        except ValueError as error:
            kind = "whole number" if SAMPLING[name] is int else "number"
            raise CommandError(f"/set {name} {value}: a {kind} is needed, or off.") from error
        sampling[name] = value
    said = ", ".join(f"{name} {value}" for name, value in sampling.items())
    chat.display.note(f"Set: {said}." if said else "All sampling is the mode's own.")


async def _both(chat: Chat, text: str) -> None:
    if text:
        await chat.ask(text, chat.model.modes)
    else:
        await _again(chat, chat.model.modes)


async def _retry(chat: Chat, name: str) -> None:
    await _again(chat, [mode_of(chat, name) if name else chat.mode])


async def _again(chat: Chat, modes: Sequence[Mode]) -> None:
    """Asks the last message anew, in place of its answer; without a new one, that stays."""
    text = _last_message(chat)
    turns = chat.conversation.turns
    undone, turns[-2:] = turns[-2:], []
    before = len(turns)
    await chat.ask(text, modes)
    if len(turns) == before:
        turns += undone


def _use(chat: Chat, name: str) -> None:
    _last_message(chat)
    *_, (_, answered) = chat.conversation.exchanges()
    names = [run.mode for run in answered.runs]
    if name not in names:
        raise CommandError(f"/use {name}: the last message was answered in {', '.join(names)}.")
    answered.chosen = names.index(name)
    chat.display.note(f"The conversation goes on from {name} mode's answer.")


def _save(chat: Chat, name: str) -> None:
    path = Path(name).expanduser() if name else chat.saved_to
    if path is None:
        raise CommandError("/save needs the name of a file, as /save chat.json.")
    if not chat.conversation.turns:
        raise CommandError("There is nothing to save yet.")
    try:
        with path.open("wb" if path == chat.saved_to else "xb") as file:
            file.write(exported([chat.conversation]))
    except FileExistsError as error:
        raise CommandError(f"{path} is there already; name another file.") from error
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from error
    chat.saved_to = path
    chat.display.note(f"Saved to {path}; the server's page imports it.")


def _load(chat: Chat, name: str) -> None:
    """Of a file with several, the one that was changed last."""
    if not name:
        raise CommandError("/load needs the name of a file, as /load chat.json.")
    path = Path(name).expanduser()
    try:
        conversations = imported(path.read_bytes())
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from error
    except NotSavedError as error:
        raise CommandError(f"{path} was not loaded: {error}.") from error
    conversation = max(conversations, key=lambda one: one.updated)
    settings, served = conversation.settings, [model.name for model in chat.models]
    for said, answered in conversation.exchanges():
        chat.display.past(said.text, answered.runs[answered.chosen])
    if settings.model not in served:
        chat.display.note(f"It was with {settings.model or 'no model'}, and goes on with {chat.model.name}.")
        settings.model = chat.model.name
    chat.conversation = conversation
    chat.saved_to = path if len(conversations) == 1 else None  # /save alone would write over the others
    of_several = f", the newest of {len(conversations)}" if len(conversations) > 1 else ""
    chat.display.note(f"Loaded {conversation.title or 'a conversation'} from {path}{of_several}.")


def _new(chat: Chat, _: str) -> None:
    chat.new()
    chat.display.note("A new conversation, with the same settings.")


def _help(chat: Chat, _: str) -> None:
    forms = {f"{name} {command.form}".rstrip(): command.about for name, command in COMMANDS.items()} | KEYS
    width = max(map(len, forms))
    for form, about in forms.items():
        chat.display.note(f"{form:{width}}  {about}")


def _quit(chat: Chat, _: str) -> None:
    chat.left = True


def _last_message(chat: Chat) -> str:
    """What was said last; raises CommandError where nothing was."""
    if not chat.conversation.turns:
        raise CommandError("Nothing was said yet.")
    *_, (said, _) = chat.conversation.exchanges()
    return said.text


COMMANDS = {
    "/mode": Command("NAME", "ask in this mode from now on", _mode, _mode_names),
    "/budget": Command("TOKENS|off", "think with at most so many tokens", _budget, lambda _: [OFF]),
    "/both": Command("[MESSAGE]", "ask in every mode at once; without a message, the last one again", _both),
    "/use": Command("MODE", "go on from this mode's answer, after /both", _use, _mode_names),
    "/retry": Command("[MODE]", "ask the last message again, in place of its answer", _retry, _mode_names),
    "/system": Command("TEXT|off", "the system prompt", _system, lambda _: [OFF]),
    "/set": Command("NAME VALUE|off", f"a sampling field: {', '.join(SAMPLING)}", _set, lambda _: list(SAMPLING)),
    "/model": Command("NAME", "ask this model", _model, lambda chat: [model.name for model in chat.models]),
    "/save": Command("[FILE]", "write the conversation into a file that the server's page imports", _save),
    "/load": Command("FILE", "go on with a conversation that /save or the server's page wrote", _load),
    "/new": Command("", "begin a new conversation", _new),
    "/help": Command("", "this list", _help),
    "/quit": Command("", "leave", _quit),
}
KEYS = {
    "Enter": "send; Alt-Enter or Ctrl-J begins a new line, and a paste of many lines stays one message",
    "Up, Ctrl-R": "what was typed before, in former sessions too",
    "Ctrl-C": "end the thinking, then the answer; empty the line; on an empty line, leave",
    "Ctrl-X Ctrl-E": "write the message in $EDITOR",
}
