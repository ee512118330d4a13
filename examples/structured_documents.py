"""Structured data from documents: each file, or each line of standard input, becomes a checked record in JSON lines.

    pip install openai
    python examples/structured_documents.py letter.txt note.txt
    echo "Paul lives in Lisbon and is 27." | python examples/structured_documents.py

The schema binds every token of the answer, so that no record has to be repaired. TWOGEAR_URL is where the server is,
TWOGEAR_API_KEY the key, if it needs one.
"""

import asyncio
import os
import sys
from pathlib import Path

from openai import AsyncOpenAI
from pydantic import BaseModel, Field, ValidationError

AT_ONCE = 8


class Person(BaseModel):
    """What is wanted of a document."""

    name: str
    age: int = Field(ge=0, le=150)
    city: str


async def extracted(client: AsyncOpenAI, model: str, document: str, at_once: asyncio.Semaphore) -> Person | None:
    """The record of a document; None where the answer did not fit into the limit."""
    async with at_once:
        answer = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Extract the person as JSON: {document}"}],
            response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": Person.model_json_schema()}},
            max_completion_tokens=200,
        )
    try:
        return Person.model_validate_json(answer.choices[0].message.content or "")
    except ValidationError:
        return None


async def main(documents: list[str]) -> None:
    """All documents at once, the records in the documents' order."""
    base_url = os.environ.get("TWOGEAR_URL", "http://127.0.0.1:8000") + "/v1"
    async with AsyncOpenAI(base_url=base_url, api_key=os.environ.get("TWOGEAR_API_KEY", "none")) as client:
        model = (await client.models.list()).data[0].id
        at_once = asyncio.Semaphore(AT_ONCE)
        people = await asyncio.gather(*(extracted(client, model, each, at_once) for each in documents))
    for person in people:
        print(person.model_dump_json() if person else "null")


asyncio.run(main([Path(name).read_text() for name in sys.argv[1:]] or sys.stdin.read().splitlines()))
