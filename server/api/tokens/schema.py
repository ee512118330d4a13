"""What the responses of `/tokenize` and `/detokenize` look like, for the OpenAPI document and docs/api/tokens.md."""

from server.api.common.schema import Answer, Count


class Tokenized(Answer):
    """Tokens of a text."""

    count: Count
    """How many."""
    max_model_len: Count
    """The model's context, in tokens."""
    tokens: list[int]
    """The token ids."""
    token_strs: list[str] | None
    """How the tokenizer spells them, with `return_token_strs`."""


class Detokenized(Answer):
    """The text of tokens."""

    prompt: str
    """The text."""
