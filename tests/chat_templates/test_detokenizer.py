"""Incremental detokenization gives the same text as all ids at once, with a bounded window."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer, make_detokenizer
from chat_templates.tokens import Vocabulary
from tests.chat_templates.small_tokenizers import KINDS

VOCABULARIES = {kind: Vocabulary(make().to_str()) for kind, make in KINDS.items()}
TOKENIZERS = {kind: make() for kind, make in KINDS.items()}


class _Watched(Vocabulary):
    """Remembers the widest window that was decoded."""

    widest = 0

    def decode_window(self, token_ids: Sequence[int]) -> str:
        self.widest = max(self.widest, len(token_ids))
        return super().decode_window(token_ids)


def _one_by_one(detokenizer: Detokenizer, ids: list[int]) -> str:
    return "".join([*(detokenizer.feed([token_id]) for token_id in ids), detokenizer.flush()])


def test_which_tokenizer_gets_which() -> None:
    kinds = {kind: type(make_detokenizer(vocabulary)) for kind, vocabulary in VOCABULARIES.items()}
    assert kinds == {
        "byte_level": ByteDetokenizer,
        "whole_words": ByteDetokenizer,
        "sentencepiece": WindowDetokenizer,
        "unigram": WindowDetokenizer,
    }


@given(st.lists(st.integers(0, 301), max_size=12), st.sampled_from(["byte_level", "whole_words"]))
def test_any_bytes_as_the_tokenizer_decodes_them(ids: list[int], kind: str) -> None:
    """Broken UTF-8 too: U+FFFD in the same places."""
    vocabulary = VOCABULARIES[kind]
    ids = [token_id for token_id in ids if token_id not in vocabulary.control_ids]
    whole = TOKENIZERS[kind].decode(ids)
    assert _one_by_one(make_detokenizer(vocabulary), ids) == whole
    at_once = make_detokenizer(vocabulary)
    assert at_once.feed(ids) + at_once.flush() == whole


# A U+FFFD that was meant, spelled in bytes, cannot be told from an unfinished character where tokenizers fall back to
# bytes: several in a row come out as more.
_text = st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=12)


@given(_text, st.sampled_from(sorted(KINDS)))
def test_text_as_the_tokenizer_decodes_it(text: str, kind: str) -> None:
    vocabulary = VOCABULARIES[kind]
    ids = vocabulary.encode(text)
    whole = TOKENIZERS[kind].decode(ids, skip_special_tokens=False)
    assert _one_by_one(make_detokenizer(vocabulary), ids) == whole


@given(_text)
def test_the_window_agrees_with_the_bytes(text: str) -> None:
    vocabulary = VOCABULARIES["byte_level"]
    ids = vocabulary.encode(text)
    assert _one_by_one(WindowDetokenizer(vocabulary), ids) == _one_by_one(ByteDetokenizer(vocabulary), ids) == text


@pytest.mark.parametrize("text", ["Hello the thing " * 200, "😀" * 200])
def test_windows_stay_small(text: str) -> None:
    vocabulary = _Watched(KINDS["sentencepiece"]().to_str())
    ids = vocabulary.encode(text)
    assert _one_by_one(WindowDetokenizer(vocabulary), ids) == text
    assert vocabulary.widest <= 8


def test_bytes_that_are_no_character_do_not_pile_up() -> None:
    vocabulary = _Watched(KINDS["sentencepiece"]().to_str())
    byte = next(n for n in range(999) if vocabulary.token_text(n) == "<0xFF>")
    detokenizer = WindowDetokenizer(vocabulary)
    assert set(_one_by_one(detokenizer, [byte] * 500)) == {"\ufffd"}
    assert vocabulary.widest <= 8


def test_added_tokens_that_are_words() -> None:
    """Neither special nor a tag: such tokens are text, also beyond ASCII."""
    vocabulary = VOCABULARIES["whole_words"]
    token_id = TOKENIZERS["whole_words"].token_to_id("한국어")
    assert token_id is not None
    assert _one_by_one(make_detokenizer(vocabulary), [token_id]) == "한국어"
    assert vocabulary.encode("한국어") == [token_id]
