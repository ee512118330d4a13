"""The address of a server, as people write it on the command line."""

from urllib.parse import urlsplit, urlunsplit

API_ROOT = "/v1"
"""What OpenAI's clients want at the end of an address; the commands add it themselves."""


def server_url(text: str) -> str:
    """The address without `/v1` and without a slash at its end, either of which may be there."""
    parts = urlsplit(text)
    path = parts.path.rstrip("/").removesuffix(API_ROOT).rstrip("/")
    return urlunsplit(parts._replace(path=path))
