"""OpenAI's text completions: `POST /v1/completions`."""

from server.api.completions.routes import API

__all__ = ["API"]
