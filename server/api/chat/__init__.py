"""OpenAI's chat completions: `POST /v1/chat/completions` and its `control`."""

from server.api.chat.routes import API

__all__ = ["API"]
