"""The OpenAPI document is true: whatever schemathesis makes of it gets an answer that the document has, never a 5xx."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always

# Not among them: that what fits the schema is accepted. It may contradict itself, or ask for another model.
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance, negative_data_rejection, unsupported_method, allow_header_conformance,
]  # fmt: skip
OPERATIONS = [
    ("POST", "/v1/chat/completions", 30),
    ("POST", "/v1/chat/completions/control", 10),
    ("POST", "/v1/chat/completions/render", 10),
    ("POST", "/v1/chat/completions/{completion_id}/control", 10),
    ("POST", "/v1/completions", 40),
    ("POST", "/v1/completions/render", 10),
    ("POST", "/v1/messages", 30),
    ("POST", "/v1/messages/count_tokens", 15),
    ("POST", "/v1/messages/render", 6),
    ("POST", "/v1/messages/{message_id}/control", 6),
    ("POST", "/v1/responses", 40),
    ("POST", "/v1/responses/input_tokens", 20),
    ("POST", "/v1/responses/render", 6),
    ("POST", "/v1/responses/compact", 20),
    ("GET", "/v1/responses/{response_id}", 4),
    ("DELETE", "/v1/responses/{response_id}", 4),
    ("GET", "/v1/responses/{response_id}/input_items", 4),
    ("POST", "/v1/responses/{response_id}/cancel", 4),
    ("POST", "/v1/responses/{response_id}/control", 10),
    ("POST", "/v1/load_lora_adapter", 6),
    ("POST", "/v1/unload_lora_adapter", 6),
    ("POST", "/tokenize", 6),
    ("POST", "/detokenize", 15),
    ("GET", "/v1/models", 2),
    ("GET", "/v1/models/{name}", 10),
    ("GET", "/health", 2),
    ("GET", "/live", 2),
    ("GET", "/metrics", 2),
    ("GET", "/version", 2),
]


@pytest.fixture(scope="module")
def schema(fmt: ChatFormat, profile: Profile) -> BaseSchema:
    engine = FakeEngine(always([*fmt.encode_text("ab"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(engine, Settings(), profile, fmt))


def test_every_operation_is_tried(schema: BaseSchema) -> None:
    results = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    documented = {(operation.method.upper(), operation.path) for operation in results}
    assert documented == {(method, path) for method, path, _ in OPERATIONS}


BODIES = [(method, path) for method, path, _ in OPERATIONS if method == "POST" and not path.endswith("/cancel")]
TRIES = [
    (*operation, mode)
    for operation in OPERATIONS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or operation[:2] in BODIES  # what could be wrong without a body?
]


@pytest.mark.parametrize(("method", "path", "examples", "mode"), TRIES, ids=str)
def test_answers_are_documented(
    schema: BaseSchema, method: str, path: str, examples: int, mode: GenerationMode
) -> None:
    operation = schema[path][method]

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(checks=CHECKS)

    check()
