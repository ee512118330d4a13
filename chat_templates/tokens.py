"""Token ids and text: reads tokenizer.json, encodes text without ever yielding a control token, gives ids their bytes.

Knows the spellings of the control tokens, not how turns are laid out (the templates) nor what they mean (the parser).
"""

import json
import re
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import Annotated, Any

import msgspec
from tokenizers import Tokenizer

from chat_templates.errors import FormatError

END_OF_TURN = "[|endofturn|]"
ASSISTANT = "[|assistant|]"
THINK, THINK_END = "<think>", "</think>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TAGS = (
    *(END_OF_TURN, "[|system|]", "[|user|]", ASSISTANT, "[|tool|]"),
    *(THINK, THINK_END, TOOL_CALL, TOOL_CALL_END, "<tool_result>", "</tool_result>", "<tool>", "</tool>"),
)
"""All that the templates write as control tokens. Each must be one added token of the tokenizer, or else a client's
text could spell it."""

_LONG = 4096  # characters, from which other threads shall run while it is encoded
_PIECE = 65_536  # characters
_ADDED_BY_A_CUT = 64  # tokens, far more than a word that is cut in two takes
_SURROGATES = re.compile("[\ud800-\udfff]")
_BAR = re.compile("[|｜]")
_FIRST_ONLY = '"prepend_scheme": "first"'  # of a blank, in tokenizer.json
_TELLING = re.compile(r"[^\s\"\\\x00-\x1f\u0100-\U0010ffff]")  # what `client_text` tells apart from a template's
_GAP = re.compile("[\n ]{0,3}")  # mostly what stands between two control tokens: encoded once and kept
_ORDINARY = re.compile(r"\s+|▁+|\w+")  # of added tokens that text may become: white space and words


TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


def replace_surrogates(text: str) -> str:
    """Lone surrogates, which JSON can smuggle in and UTF-8 cannot hold, become U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


class Vocabulary:
    """One tokenizer.json, for a format whose `tags` it may have as tokens, and must have those that are `required`.

    `control` maps the spelling of every control token to its id: the special added tokens, and the tags also where the
    tokenizer has them, or parts of them, as ordinary added tokens (`<think>` in Qwen3): those are `plain_control_ids`.
    They are never shown. `written` has beside these what a template may write as a token of its own: added tokens that
    `template`, its source, spells, and all with a bar (`<|fim_prefix|>`). `opening` are the ids that the tokenizer puts
    before all text (Llama's and Gemma's BOS).

    Client text becomes none of the added tokens but white space and words. `eats_before` and `eats_after` are the
    spellings of tokens that take the white space next to them with them (Phi-3's roles).
    """

    def __init__(
        self, tokenizer_json: str, *, required: Sequence[str] = TAGS, tags: Sequence[str] = (), template: str = ""
    ) -> None:
        spec = _checked(tokenizer_json)
        added = {token["content"]: int(token["id"]) for token in spec["added_tokens"]}
        missing = [tag for tag in required if tag not in added]
        if missing:
            raise FormatError(f"the tokenizer has no token of its own for {', '.join(missing)}", "tokenizer")
        special = {token["content"] for token in spec["added_tokens"] if token["special"]}
        control = sorted(special.union(required, (text for text in added if _is_part(text, tags))))
        self.control: dict[str, int] = {text: added[text] for text in control}
        self.control_ids = frozenset(self.control.values())
        self.plain_control_ids = frozenset(added[text] for text in control if text not in special)
        self.written = self._written(added, template)
        self.eats_before = {token["content"] for token in spec["added_tokens"] if token["lstrip"]}
        self.eats_after = {token["content"] for token in spec["added_tokens"] if token["rstrip"]}
        self.is_byte_level = _is_byte_level(spec.get("decoder"))
        self.added: Mapping[str, int] = added
        self._added_texts = {token_id: text for text, token_id in added.items()}
        self._bytes: dict[int, bytes] = {}
        self._tokenizer = _tokenizer(tokenizer_json)
        self.opening: list[int] = _opening(self._tokenizer)
        self._gaps: dict[tuple[str, bool], list[int]] = {}
        words = [
            token for token in spec["added_tokens"] if _ORDINARY.fullmatch(token["content"]) and not token["special"]
        ]
        plain = {**spec, "added_tokens": words, "post_processor": None, "truncation": None, "padding": None}
        self._plain = _tokenizer(json.dumps(plain))
        self._plain_within = self._plain
        if _FIRST_ONLY in json.dumps(plain.get("pre_tokenizer")):
            within = json.dumps(plain).replace(_FIRST_ONLY, _FIRST_ONLY.replace("first", "never"))
            self._plain_within = _tokenizer(within)
        # Without the tokens before them, those that are not in the model's vocabulary get other ids.
        ids = {self._plain.token_to_id(word["content"]): int(word["id"]) for word in words}
        self._moved = {wrong: right for wrong, right in ids.items() if wrong != right}
        # Added tokens may also be entries of the model's vocabulary, which some models match whole.
        harmless = {_unknown_id(spec["model"]), *(int(word["id"]) for word in words)}
        self._forbidden = frozenset(added.values()) - harmless

    def for_template(self, template: str) -> "Vocabulary":
        """The same for another `template`."""
        made = copy(self)
        made.written = self._written(self.added, template)
        return made

    def _written(self, added: Mapping[str, int], template: str) -> dict[str, int]:
        return {
            text: token_id
            for text, token_id in added.items()
            if _TELLING.search(text) and (text in self.control or _is_markup(text, template))
        }

    def encode(self, text: str, *, is_start: bool = True) -> list[int]:
        """The ids of `text` as ordinary text; spellings of control tokens are cut into smaller tokens.

        `is_start`: nothing is before it; some tokenizers put a blank there. One that puts a blank before all text it is
        given may put one at such a cut too.
        """
        tokenizer = self._plain if is_start else self._plain_within
        if not _GAP.fullmatch(text):
            return self._encode(replace_surrogates(text), tokenizer)
        known = self._gaps.get((text, is_start))
        if known is None:
            known = self._gaps[text, is_start] = self._encode(text, tokenizer)
        return known.copy()

    def least_tokens(self, text: str, enough: int) -> int:
        """A number of tokens that `text` has at least, in time that depends on `enough` and not on the text.

        Counts no further than a little above `enough`, piece by piece; what the cuts add is left out many times over.
        """
        least = 0
        for start in range(0, len(text), _PIECE):
            least += max(0, len(self._plain_ids(text[start : start + _PIECE], self._plain)) - _ADDED_BY_A_CUT)
            if least >= enough:
                break
        return least

    def _plain_ids(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """Long text in the library's way that lets other threads run meanwhile; a batch of short text is slow."""
        if len(text) < _LONG:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        else:
            ids = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return [self._moved.get(token_id, token_id) for token_id in ids] if self._moved else ids

    def _encode(self, text: str, tokenizer: Tokenizer) -> list[int]:
        ids = self._plain_ids(text, tokenizer)
        if self._forbidden.isdisjoint(ids):
            return ids
        encoding = tokenizer.encode(text, add_special_tokens=False)
        spans = [span for token_id, span in zip(ids, encoding.offsets, strict=True) if token_id in self._forbidden]
        if any(end - start < 2 for start, end in spans):
            raise FormatError("the text holds a character that the tokenizer takes for a control token", "messages")
        cuts = [0, *(start + 1 for start, _ in spans), len(text)]
        return [
            token_id
            for start, end in pairwise(cuts)
            for token_id in self._encode(text[start:end], self._plain_within if start else tokenizer)
        ]

    def token_text(self, token_id: int) -> str:
        """How the tokenizer's file spells the token; empty for an id it does not have."""
        return self._tokenizer.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token of a byte-level tokenizer stands for; none for an id it does not have."""
        known = self._bytes.get(token_id)
        if known is None:
            text = self._added_texts.get(token_id)
            known = _unescape(self.token_text(token_id)) if text is None else text.encode()
            self._bytes[token_id] = known
        return known

    def decode_window(self, token_ids: Sequence[int]) -> str:
        """The text of a few ids by the tokenizer's own decoder."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return text


class _AddedToken(msgspec.Struct):
    id: TokenId
    content: str
    lstrip: bool
    rstrip: bool
    special: bool


class _Added(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


class _Part(msgspec.Struct):
    type: str


class _Model(msgspec.Struct):
    type: str
    vocab: dict[str, TokenId] | list[tuple[str, float]]
    unk_id: TokenId | None = None
    unk_token: str | None = None


class _File(msgspec.Struct):
    """What is read here of a tokenizer.json; the rest is for the library to check."""

    added_tokens: list[_AddedToken]
    model: _Model
    decoder: _Part | None = None


def added_spellings(tokenizer_json: str) -> frozenset[str]:
    """Those of a tokenizer's added tokens; none where the file is not as it should be, of which `Vocabulary` tells."""
    try:
        return frozenset(token.content for token in msgspec.json.decode(tokenizer_json, type=_Added).added_tokens)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return frozenset()


def _checked(tokenizer_json: str) -> dict[str, Any]:
    """The file's content; raises FormatError where it is not what it should be."""
    try:
        spec: dict[str, Any] = json.loads(tokenizer_json)
        msgspec.convert(spec, _File)
    except (ValueError, msgspec.ValidationError) as error:
        raise FormatError(f"tokenizer.json: {error}", "tokenizer") from error
    except RecursionError as error:
        raise FormatError("tokenizer.json: nested too deeply", "tokenizer") from error
    return spec


def _tokenizer(tokenizer_json: str) -> Tokenizer:
    """Raises FormatError for what the library does not take, for which it has no exception of its own."""
    try:
        return Tokenizer.from_str(tokenizer_json)
    except Exception as error:
        raise FormatError(f"tokenizer.json: {error}", "tokenizer") from error


def _is_part(text: str, tags: Sequence[str]) -> bool:
    """Whether an added token is one of the tags, or markup within one."""
    return text in tags or (len(text) > 2 and not _ORDINARY.fullmatch(text) and any(text in tag for tag in tags))


def _is_markup(text: str, template: str) -> bool:
    """Whether an added token is one that the template writes, or such a one as only a template should."""
    return not _ORDINARY.fullmatch(text) and bool(text in template or _BAR.search(text))


def _opening(tokenizer: Tokenizer) -> list[int]:
    """What stands before any text: a text's ids with special tokens, up to where those without them begin."""
    alone: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
    ids: list[int] = tokenizer.encode("a", add_special_tokens=True).ids
    starts = (start for start in range(len(ids)) if alone and ids[start : start + len(alone)] == alone)
    return ids[: next(starts, 0)]


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    return decoder is not None and decoder["type"] == "ByteLevel"


def _unknown_id(model: dict[str, Any]) -> int | None:
    has_number = model["type"] == "Unigram"
    unknown: int | None = model.get("unk_id") if has_number else model["vocab"].get(model.get("unk_token"))
    return unknown


def _byte_table() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, src/encoder.py, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_table()


def _unescape(text: str) -> bytes:
    """As the byte-level decoder does it: a token with a character outside the table stands for itself."""
    if all(char in _BYTES for char in text):
        return bytes(_BYTES[char] for char in text)
    return text.encode()
