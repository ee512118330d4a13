"""The tasks of all clients: a sum, a forecast in a given form, and a tool that tells the weather."""

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from chat_templates.format import ChatFormat
from tests.fake_engine import Script

MODEL = "twogear-tiny"
SUM = "What is 38 + 45?"
WEATHER = "What is the weather in Rome?"
REPLY = "In Rome it is 21 degrees, sunny."
THOUGHT = "The user wants the weather in Rome."
OBSERVED: dict[str, Any] = {"temperature": 21, "condition": "sunny"}

GET_WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Forecast(BaseModel):
    """A forecast that every model can write within a limit, whatever it has learnt."""

    city: Literal["Rome", "Paris"]
    days: Literal[1, 2, 3]


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return json.dumps(OBSERVED) if city == "Rome" else "unknown"


def weather_script(fmt: ChatFormat) -> Script:
    """Calls get_weather for Rome, and says REPLY once there is a result; thinks THOUGHT before either."""
    call = json.dumps({"name": "get_weather", "arguments": {"city": "Rome"}})
    calling = [fmt.tool_call_id, *fmt.encode_text(call), fmt.tool_call_end_id, fmt.end_of_turn_id]
    replying = [*fmt.encode_text(REPLY), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text(THOUGHT), *fmt.close_thinking()]

    def script(prompt: list[int]) -> Iterator[int]:
        said = replying if OBSERVED["condition"] in fmt.decode(prompt, show_control=True) else calling
        return iter(thinking + said if fmt.is_thinking_open(prompt) else said)

    return script
