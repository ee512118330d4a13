"""The Responses API with OpenAI's Python SDK: thinking as items, a conversation that the server keeps, typed answers.

    pip install openai
    python examples/openai_responses.py

TWOGEAR_URL is where the server is, TWOGEAR_API_KEY the key, if it needs one.
"""

import os

from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """What is wanted of a sentence."""

    name: str
    age: int
    city: str


client = OpenAI(
    base_url=os.environ.get("TWOGEAR_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("TWOGEAR_API_KEY", "none"),
)
model = client.models.list().data[0].id

first = client.responses.create(model=model, input="What is 38 + 45?", reasoning={"effort": "low"})
for item in first.output:
    if item.type == "reasoning":
        print("thought:", *[part.text for part in item.content or []])
print("answer:", first.output_text)

second = client.responses.create(model=model, input="What is 1 + 2?", previous_response_id=first.id)
print("then:", second.output_text)

with client.responses.stream(model=f"{model}:reasoning", input="What is 7 + 8?") as stream:
    for event in stream:
        if event.type in ("response.reasoning_text.delta", "response.output_text.delta"):
            print(event.delta, end="", flush=True)
    print()

parsed = client.responses.parse(
    model=model, input="Extract the person as JSON: Paul lives in Lisbon and is 27.", text_format=Person
)
print("typed:", parsed.output_parsed)
