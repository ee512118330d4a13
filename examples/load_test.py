"""A load test: so many requests at once in each mode, and what a client sees of it: first tokens, rate, failures.

    pip install openai
    python examples/load_test.py 64 8

The first number is how many requests each mode gets, the second how many run at once. `twogear bench` measures more
carefully. TWOGEAR_URL is where the server is, TWOGEAR_API_KEY the key, if it needs one.
"""

import asyncio
import os
import sys
import time
from statistics import median, quantiles

from openai import AsyncOpenAI, OpenAIError

REQUESTS, AT_ONCE = (int(number) for number in (*sys.argv[1:3], *("64", "8")[len(sys.argv) - 1 :]))


async def one(client: AsyncOpenAI, model: str, number: int, at_once: asyncio.Semaphore) -> tuple[float, int]:
    """Seconds to the first token of a request, and how many tokens it had."""
    async with at_once:
        started, first, tokens = time.monotonic(), 0.0, 0
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"What is {number} + {number * 7 % 100}?"}],
            stream=True,
            stream_options={"include_usage": True},
            max_tokens=300,
        )
        async for chunk in stream:
            if chunk.choices and not first:
                first = time.monotonic() - started
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return first, tokens


async def main() -> None:
    """A line for each mode."""
    base_url = os.environ.get("TWOGEAR_URL", "http://127.0.0.1:8000") + "/v1"
    async with AsyncOpenAI(base_url=base_url, api_key=os.environ.get("TWOGEAR_API_KEY", "none")) as client:
        for model in [listed.id for listed in (await client.models.list()).data][1:]:
            at_once = asyncio.Semaphore(AT_ONCE)
            started = time.monotonic()
            asked = [one(client, model, number, at_once) for number in range(REQUESTS)]
            results = await asyncio.gather(*asked, return_exceptions=True)
            seconds = time.monotonic() - started
            done = [result for result in results if not isinstance(result, BaseException)]
            firsts = [first for first, _ in done] or [0.0]
            late = quantiles([*firsts, *firsts], n=20)[-1]
            rate = sum(tokens for _, tokens in done) / seconds
            failed = sum(isinstance(result, OpenAIError) for result in results)
            print(f"{model}: {len(done)} answered, {failed} failed, {rate:.0f} tokens/s, "
                  f"first token after {median(firsts):.3f} s (95 %: {late:.3f} s)")  # fmt: skip


asyncio.run(main())
