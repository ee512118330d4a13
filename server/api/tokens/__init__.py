"""vLLM's `POST /tokenize` and `POST /detokenize`."""

from server.api.tokens.routes import API

__all__ = ["API"]
