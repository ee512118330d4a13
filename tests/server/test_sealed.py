"""What is sealed comes back as it was, and nothing else does."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.common import sealed
from server.api.common.sealed import KEY_VARIABLE, seal, unseal


@pytest.fixture(autouse=True)
def _fresh_key() -> Iterator[None]:
    sealed._cipher.cache_clear()
    yield
    sealed._cipher.cache_clear()


@given(st.text())
def test_it_comes_back(text: str) -> None:
    assert unseal("thinking", seal("thinking", text)) == text


def test_it_shows_nothing_and_is_never_the_same() -> None:
    one, other = seal("thinking", "a secret"), seal("thinking", "a secret")
    assert one != other
    assert "secret" not in one


def test_for_another_purpose_it_is_nothing() -> None:
    assert unseal("other", seal("thinking", "so")) is None


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_whatever_else_comes_is_nothing(token: str) -> None:
    assert unseal("thinking", token) is None


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_changed_one_is_nothing(where: int, change: int) -> None:
    token = bytearray(seal("thinking", "so it is").encode())
    token[where % len(token)] ^= change
    assert unseal("thinking", token.decode("latin-1")) is None


def test_servers_with_the_same_secret_read_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "a secret of mine")
    token = seal("thinking", "so")
    sealed._cipher.cache_clear()
    assert unseal("thinking", token) == "so"
    monkeypatch.setenv(KEY_VARIABLE, "another")
    sealed._cipher.cache_clear()
    assert unseal("thinking", token) is None
