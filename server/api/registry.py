"""The APIs that the server has, one line for each."""

from server.api import chat, completions, messages, service, tokens

APIS = (
    chat.API,
    completions.API,
    messages.API,
    tokens.API,
    service.API,
)
