"""The APIs that the server has, one line for each."""

from server.api import adapters, chat, completions, messages, responses, service, tokens

APIS = (
    chat.API,
    completions.API,
    messages.API,
    responses.API,
    tokens.API,
    adapters.API,
    service.API,
)
