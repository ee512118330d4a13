"""Anthropic's messages: `POST /v1/messages`, its `control`, and `POST /v1/messages/count_tokens`."""

from server.api.messages.routes import API

__all__ = ["API"]
