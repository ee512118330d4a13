"""vLLM takes what `…/render` says for a request of its own, as its routers do. No engine is started."""

import json
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.fake_engine import FakeEngine

pytestmark = pytest.mark.engine  # beside the tests that import vLLM anyway
HELLO = [{"role": "user", "content": "Hi"}]
OURS = {"content_parts", "reasoning_parser_kwargs", "return_token_ids", "output_mode", "kv_transfer_params"}
"""Fields of vLLM's that are for requests, not for what is rendered: at their defaults they mean the same left out."""


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "n": 2}),
        ("/v1/chat/completions", {"messages": HELLO, "reasoning_mode": "reasoning", "thinking_token_budget": 5}),
        (
            "/v1/chat/completions",
            {
                "messages": HELLO,
                "stream": True,
                "stream_options": {"include_usage": True},
                "seed": 3,
                "n": 2,
                "logit_bias": {"8": -1.5},
                "stop": ["x"],
                "bad_words": ["no"],
                "logprobs": True,
                "top_logprobs": 2,
                "temperature": 0.7,
                "response_format": {"type": "json_object"},
                "cache_salt": "own",
                "allowed_token_ids": [5, 6],
            },
        ),
        ("/v1/completions", {"prompt": ["Once", "a b"], "max_tokens": 5, "temperature": 0.5, "stop_token_ids": [9]}),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it is imported first here
async def test_vllm_takes_it(path: str, asked: dict[str, Any]) -> None:
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest

    fmt = ChatFormat.from_folder(EMBEDDED_MODEL)
    engine = FakeEngine(lambda _prompt: iter(()), (fmt.end_of_turn_id,))
    app = create_app(engine, Settings(), load_profile(PROFILE_FOLDER / "twogear_tiny.toml"), fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        answer = (await http.post(f"{path}/render", json=asked)).json()
    told = answer if isinstance(answer, list) else [answer]
    for one in told:
        assert set(GenerateRequest.model_fields) - set(one) == OURS | {"ec_transfer_params"}
        read = GenerateRequest.model_validate(one)
        again = json.loads(json.dumps(read.model_dump(), default=str))
        assert {name: again[name] for name in one if name not in ("sampling_params", "stream_options")} == {
            name: value for name, value in one.items() if name not in ("sampling_params", "stream_options")
        }
        for name, value in one["sampling_params"].items():
            found = getattr(read.sampling_params, name)
            if name == "structured_outputs":
                assert found.grammar == value["grammar"]
            elif name == "logit_bias":
                assert {str(token): bias for token, bias in found.items()} == value
            else:
                assert found == value, name
