"""Chat completions with OpenAI's Python SDK: one question in every mode, streamed, with thinking and counts.

    pip install openai
    python examples/openai_chat.py

TWOGEAR_URL is where the server is, TWOGEAR_API_KEY the key, if it needs one.
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("TWOGEAR_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("TWOGEAR_API_KEY", "none"),
)
model = client.models.list().data[0].id

for mode in ("standard", "reasoning"):
    print(f"# {mode}")
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is 303 + 948 - 105?"}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"reasoning_mode": mode, "thinking_token_budget": 200 if mode == "reasoning" else None},
    )
    for chunk in stream:
        for choice in chunk.choices:
            thinking = getattr(choice.delta, "reasoning_content", None)  # a field that the SDK has no name for
            print(thinking or choice.delta.content or "", end="", flush=True)
        if chunk.usage:
            details = chunk.usage.completion_tokens_details
            thought = details.reasoning_tokens if details else 0
            print(f"\n({chunk.usage.completion_tokens} tokens, {thought} of them thinking)")
