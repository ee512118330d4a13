"""The class that reads a Qwen3 config.json: transformers' own will do."""

from transformers import Qwen3Config

__all__ = ["Qwen3Config"]
