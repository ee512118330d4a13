"""LoRA adapters, loaded and unloaded while the server runs: vLLM's two routes, where the server allows it."""

from server.api.adapters.routes import API

__all__ = ["API"]
