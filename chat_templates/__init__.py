"""The chat templates and the code that renders and parses the chat format; knows nothing of HTTP."""
