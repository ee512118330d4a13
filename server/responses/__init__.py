"""From pieces to OpenAI's objects, whole or streamed."""
