"""What a client is told of a request that vLLM refuses: its own words, unless they name files or code."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torch and vLLM deprecate of each other is not for these tests to fail on
    from engine.conversion import refusal


@pytest.mark.parametrize(
    "text",
    ["temperature must be non-negative, got -1.0.", "top_p must be in (0, 1]", "the regex /[a-z]+/ is too large"],
)
def test_vllms_own_words_are_told(text: str) -> None:
    assert refusal(ValueError(text)) == text


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such file: /opt/models/secret/config.json"),
        ValueError("failed:\nTraceback (most recent call last):"),
        TypeError("add() takes 2 positional arguments but 3 were given"),
    ],
)
def test_files_and_code_are_not_named(error: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal(error) == "the engine refuses this request; the server's log says why"
    assert str(error) in capfd.readouterr().err
