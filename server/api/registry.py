"""The APIs that the server has, one line for each."""

from server.api import chat, completions, service, tokens

APIS = (
    chat.API,
    completions.API,
    tokens.API,
    service.API,
)
