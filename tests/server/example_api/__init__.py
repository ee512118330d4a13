"""An API of one route for the tests and docs/add-an-api.md: `POST /ask`."""

from tests.server.example_api.routes import API

__all__ = ["API"]
