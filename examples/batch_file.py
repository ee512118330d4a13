"""A batch over a file in OpenAI's batch format: each line is a request, and each result a line of the output.

    pip install httpx
    python examples/batch_file.py examples/batch_requests.jsonl results.jsonl

Results come as they are ready. Run it again after an interruption: what has its result already is not asked again.
A full or restarting server is asked again as it says. TWOGEAR_URL is where it is, TWOGEAR_API_KEY the key, if needed.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx

AT_ONCE = 32
FULL = (429, 503)


async def answered(http: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
    """The line of the output for a request."""
    while True:
        response = await http.request(request["method"], request["url"], json=request["body"])
        if response.status_code not in FULL:
            break
        await asyncio.sleep(float(response.headers.get("Retry-After", 1)))
    result = {"status_code": response.status_code, "body": response.json()}
    return {"custom_id": request["custom_id"], "response": result}


async def main(requests: list[dict[str, Any]], target: Path) -> None:
    """Asks all of them; each result becomes a line of `target`."""
    at_once = asyncio.Semaphore(AT_ONCE)
    base_url = os.environ.get("TWOGEAR_URL", "http://127.0.0.1:8000")
    headers = {"Authorization": f"Bearer {os.environ.get('TWOGEAR_API_KEY', 'none')}"}
    # Thinking takes as long as it takes; only connections have a limit.
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=httpx.Timeout(None, connect=10)) as http:

        async def one(request: dict[str, Any]) -> None:
            async with at_once:
                line = json.dumps(await answered(http, request))
            with target.open("a") as file:
                file.write(line + "\n")
            print(request["custom_id"], "done")

        await asyncio.gather(*(one(request) for request in requests))


source, target = Path(sys.argv[1]), Path(sys.argv[2])
done = {json.loads(line)["custom_id"] for line in target.read_text().splitlines()} if target.exists() else set()
asked = [json.loads(line) for line in source.read_text().splitlines()]
asyncio.run(main([request for request in asked if request["custom_id"] not in done], target))
