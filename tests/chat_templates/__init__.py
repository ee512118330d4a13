"""Tests of the chat format; `python -m tests.chat_templates.regenerate` rewrites the golden files."""
