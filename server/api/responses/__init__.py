"""OpenAI's responses: `POST /v1/responses`, and what is stored of them."""

from server.api.responses.routes import API

__all__ = ["API"]
