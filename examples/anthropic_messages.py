"""The Messages API with Anthropic's Python SDK: thinking blocks, a stream, a tool whose result goes back.

    pip install anthropic
    python examples/anthropic_messages.py

TWOGEAR_URL is where the server is (the SDK adds /v1 itself), TWOGEAR_API_KEY the key, if it needs one.
"""

import json
import os

from anthropic import Anthropic, beta_tool

client = Anthropic(
    base_url=os.environ.get("TWOGEAR_URL", "http://127.0.0.1:8000"),
    api_key=os.environ.get("TWOGEAR_API_KEY", "none"),
)
model = client.models.list().data[0].id

with client.messages.stream(
    model=model,
    max_tokens=400,
    messages=[{"role": "user", "content": "What is 38 + 45?"}],
    thinking={"type": "adaptive"},  # left out: standard mode
) as stream:
    for event in stream:
        if event.type == "thinking":
            print(event.thinking, end="", flush=True)
        elif event.type == "text":
            print(event.text, end="", flush=True)
        elif event.type == "content_block_stop":
            print()
    print(f"({stream.get_final_message().usage.output_tokens} tokens)")


@beta_tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return json.dumps({"temperature": 21, "condition": "sunny"} if city == "Rome" else "unknown")


runner = client.beta.messages.tool_runner(
    model=model,
    max_tokens=400,
    messages=[{"role": "user", "content": "What is the weather in Rome?"}],
    tools=[get_weather],
)
for message in runner:
    for block in message.content:
        print(block.text if block.type == "text" else block.to_dict())
