"""OpenAI's chat completions: `POST /v1/chat/completions` and its `control`."""
