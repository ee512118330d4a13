"""instructor: Pydantic models from its modes for tools, JSON and JSON schemas, sync, async, in parts."""

from collections.abc import Iterator
from typing import Any

import instructor
import openai
import pytest
from instructor import Mode

from tests.clients.scenarios import MODEL, WEATHER, Forecast

pytestmark = pytest.mark.engine
ASKED: Any = [{"role": "user", "content": WEATHER}]
MODES: list[dict[str, Any]] = [
    {"model": MODEL},
    {"model": MODEL, "extra_body": {"reasoning_mode": "reasoning"}},
    {"model": f"{MODEL}:reasoning"},
    {"model": MODEL, "reasoning_effort": "low"},
]


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA], ids=lambda mode: str(mode.value))
@pytest.mark.parametrize("how", MODES)
def test_a_model_comes_back(sdk: openai.OpenAI, mode: Mode, how: dict[str, Any]) -> None:
    forecast, raw = instructor.from_openai(sdk, mode=mode).chat.completions.create_with_completion(
        messages=ASKED, response_model=Forecast, max_retries=0, max_tokens=600, **how
    )
    assert isinstance(forecast, Forecast)
    thinks = how != MODES[0]
    assert (raw.usage.completion_tokens_details.reasoning_tokens > 0) == thinks


async def test_async_and_in_parts(url: str) -> None:
    asked: dict[str, Any] = {"model": f"{MODEL}:reasoning", "messages": ASKED, "max_tokens": 600}
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
        client = instructor.from_openai(sdk, mode=Mode.JSON_SCHEMA)
        whole = await client.chat.completions.create(response_model=Forecast, **asked)
        parts = [part async for part in client.chat.completions.create_partial(response_model=Forecast, **asked)]
    assert isinstance(whole, Forecast)
    Forecast.model_validate(parts[-1].model_dump())


def test_an_error_is_told(sdk: openai.OpenAI) -> None:
    with pytest.raises(Exception, match='must be "standard" or "reasoning"'):
        instructor.from_openai(sdk).chat.completions.create(
            model=MODEL, messages=ASKED, response_model=Forecast, max_retries=0, extra_body={"reasoning_mode": "deep"}
        )
