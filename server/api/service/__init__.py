"""The server itself: its models, health, metrics and version."""

from server.api.service.routes import API

__all__ = ["API"]
