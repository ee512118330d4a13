"""vLLM's KV events, by which routers know a server's pages: `-- --kv-events-config`, as the Helm chart sets it."""

import json
import os
from collections import defaultdict
from pathlib import Path

import httpx
import msgspec
import pytest
import zmq

from tests.real_server import RealServer

pytestmark = pytest.mark.engine
TOPIC = "kv@10.0.0.1@twogear-tiny"
PAGES = 256
"""Tokens that are told of at least."""


def test_pages_that_are_read_are_told(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    config = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint, "topic": TOPIC}
    with (
        RealServer("--", "--max-model-len", "4096", "--kv-events-config", json.dumps(config)) as server,
        zmq.Context() as context,
        context.socket(zmq.SUB) as socket,
    ):
        socket.connect(endpoint)
        socket.subscribe(TOPIC)
        messages = [{"role": "user", "content": f"{os.urandom(4).hex()} " + "a long question " * 100}]
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": messages, "max_tokens": 8})
        assert answer.status_code == 200, answer.text
        rendered = httpx.post(f"{server.url}/v1/chat/completions/render", json={"messages": messages}).json()
        socket.setsockopt(zmq.RCVTIMEO, 60_000)
        told = defaultdict[int, list[int]](list)
        while not any(len(ids) >= PAGES for ids in told.values()):
            topic, _, payload = socket.recv_multipart()
            assert topic.decode() == TOPIC
            _, events, *_ = msgspec.msgpack.decode(payload)
            for event in events:
                if event["type"] == "BlockStored":
                    told[event.get("group_idx", 0)] += event["token_ids"]
    for ids in told.values():  # of each kind of layers
        assert ids[:PAGES] == rendered["token_ids"][: min(PAGES, len(ids))]
