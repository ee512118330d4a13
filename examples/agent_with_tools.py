"""An agent with a tool, by OpenAI's Agents SDK: it thinks, calls the tool, sees the result and answers.

    pip install openai-agents
    python examples/agent_with_tools.py

TWOGEAR_URL is where the server is, TWOGEAR_API_KEY the key, if it needs one.
"""

import json
import os

from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from agents.items import MessageOutputItem, ReasoningItem, ToolCallItem, ToolCallOutputItem
from openai import AsyncOpenAI, OpenAI

base_url = os.environ.get("TWOGEAR_URL", "http://127.0.0.1:8000") + "/v1"
api_key = os.environ.get("TWOGEAR_API_KEY", "none")
model = OpenAI(base_url=base_url, api_key=api_key).models.list().data[0].id
set_default_openai_client(AsyncOpenAI(base_url=base_url, api_key=api_key))
set_tracing_disabled(True)  # traces would go to OpenAI


@function_tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return json.dumps({"city": city, "temperature": 21, "condition": "sunny"})


agent = Agent(
    name="Assistant",
    model=f"{model}:reasoning",
    tools=[get_weather],
    model_settings=ModelSettings(temperature=0, max_tokens=400),
)
result = Runner.run_sync(agent, "What is the weather in Rome?")
for item in result.new_items:
    match item:
        case ReasoningItem():
            print("thinks:", *[part.text for part in item.raw_item.content or []])
        case ToolCallItem():
            print("calls: ", item.raw_item)
        case ToolCallOutputItem():
            print("gets:  ", item.output)
        case MessageOutputItem():
            print("says:  ", result.final_output)
