"""docs/api.md and docs/api/ say what the code does: their tables are made from it, and their examples run."""

import json
import re

import pytest

from chat_templates.format import ChatFormat
from server.api.chat.body import ChatRequest
from server.api.common.fields import Fields
from server.api.common.refused import UNSUPPORTED
from server.api.completions.body import CompletionRequest
from server.api.messages.body import MessagesRequest
from server.api.responses.body import ResponseRequest
from server.api.tokens.body import DetokenizeRequest, TokenizeChatRequest
from server.commands.reference.fields import SHOWN_PROFILE
from server.commands.reference.pages import FAMILIES, FILES, OBSERVABILITY, PROFILES, TABLE, TABLES, render
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client

TEXT = "".join(file.read_text() for file in FILES)
TRY = re.compile(r"<!-- try (\w+) (\S+) (\d+) -->\n```json\n(.*?)```\n(?:```json\n(.*?)```)?", re.DOTALL)
WORDS = re.compile(r"`(\w+)`")


def test_the_tables_are_those_of_the_code() -> None:
    texts = [TEXT, FAMILIES.read_text(), OBSERVABILITY.read_text(), PROFILES.read_text()]
    for text in texts:
        assert render(text) == text, "renew them: python -m server.commands.reference"
    assert {found[1] for text in texts for found in TABLE.findall(text)} == set(TABLES)


def test_a_switch_of_the_server_has_no_default() -> None:
    """A parser's `True` of one that switches something off would read as if it was off from the start."""
    switches = [row for row in TABLES["options"]().splitlines() if row.startswith("| `--no-")]
    assert switches
    assert all(row.split(" | ")[1] == "" for row in switches)


@pytest.mark.parametrize(
    "kind",
    [ChatRequest, CompletionRequest, MessagesRequest, ResponseRequest, TokenizeChatRequest, DetokenizeRequest],
)
def test_every_field_has_a_meaning(kind: type[Fields]) -> None:
    assert not [name for name, field in kind.model_fields.items() if not field.description]


@pytest.mark.parametrize("example", TRY.findall(TEXT), ids=lambda example: " ".join(example[:3]))
async def test_the_examples_run(client: Client, fmt: ChatFormat, example: tuple[str, ...]) -> None:
    method, path, status, asked, answer = example
    ids = [*fmt.encode_text("83"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("38+45"), *fmt.close_thinking()]
    engine = FakeEngine(
        lambda prompt: iter(thinking + ids if fmt.is_thinking_open(prompt) else ids), (fmt.end_of_turn_id,)
    )
    async with client(engine) as http:
        response = await http.request(method, path, json=json.loads(asked), headers={"X-Request-Id": "req-1"})
    assert response.status_code == int(status), response.text
    if answer:
        assert response.json() == json.loads(answer)


def test_fields_that_the_prose_names_exist() -> None:
    """Words in code marks that look like fields are in the tables, the profile, or said to be refused or ignored."""
    known = "".join(TABLES[name]() for name in TABLES) + SHOWN_PROFILE.read_text()
    ignored = "".join(part.partition("\n\n")[0] for part in TEXT.split("ignored here:")[1:])
    refused = ["functions", "function_call", "guided_json", "structural_tag", "reasonning_mode", *UNSUPPORTED]
    words = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", TABLE.sub("", TRY.sub("", TEXT))))
    assert words
    assert not sorted(word for word in words if word not in known and word not in [*refused, *WORDS.findall(ignored)])
    assert not {*WORDS.findall(ignored)} & {*ChatRequest.model_fields, *CompletionRequest.model_fields}
