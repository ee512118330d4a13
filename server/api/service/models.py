"""The listed models as OpenAI tells of them, and as Anthropic does."""

from datetime import UTC, datetime

from server.core.admission import Served
from server.core.serving import Serving
from server.errors import JsonObject
from server.modes.resolve import model_names

VERSION_HEADER = "anthropic-version"
"""Clients of Anthropic's API send it with every request."""


def models_of(serving: Serving) -> JsonObject:
    """All of them, in OpenAI's shape."""
    return {"object": "list", "data": [model_of(name, served, serving) for name, served in _names(serving).items()]}


def model_of(name: str, served: Served, serving: Serving) -> JsonObject:
    """One of them."""
    ready, own, mode = serving.engine.ready, serving.settings.model_name, served.mode
    return {
        "id": name,
        "object": "model",
        "created": serving.started,
        "owned_by": "twogear",
        "root": served.name,
        "parent": None if served.adapter is None else own,
        "max_model_len": None if ready is None else ready.max_context,
        "weights": serving.settings.weights,
        "reasoning_mode": mode.name,
        "kind": mode.kind,
    }


def anthropic_models(serving: Serving) -> JsonObject:
    """All of them, in Anthropic's shape: one page."""
    data = [anthropic_model(name, served, serving) for name, served in _names(serving).items()]
    return {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}


def anthropic_model(name: str, served: Served, serving: Serving) -> JsonObject:
    """One of them."""
    ready = serving.engine.ready
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(serving.started, UTC).isoformat().replace("+00:00", "Z"),
        "max_input_tokens": None if ready is None else ready.max_context,
        "max_tokens": None if ready is None else min(ready.max_context, served.mode.profile.max_tokens_limit),
        "lifecycle": "active",
        "capabilities": None,
    }


def _names(serving: Serving) -> dict[str, Served]:
    """The model's, and then those of each adapter."""
    models = {serving.settings.model_name: None, **serving.adapters.by_name}
    return {
        listed: Served(name, adapter, mode)
        for name, adapter in models.items()
        for listed, mode in model_names(name, serving.modes).items()
    }
