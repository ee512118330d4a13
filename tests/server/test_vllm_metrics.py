"""vLLM's metrics are all here, by name, labels and buckets, but for those that are named below with a reason."""

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from chat_templates.format import ChatFormat
from engine.messages import STEP_TOKENS, PageGroup, Stats
from server.telemetry import vllm_metrics
from tests.fake_engine import FakeEngine
from tests.server.conftest import MODEL, Client, always, body

CHAT = "/v1/chat/completions"
LEFT_OUT = {
    "vllm:num_requests_kv_fetch_by_stage": "pages are not transferred between engines",
    "vllm:external_prefix_cache_queries": "pages are not transferred between engines",
    "vllm:external_prefix_cache_hits": "pages are not transferred between engines",
    "vllm:mm_cache_queries": "no images or sound are taken",
    "vllm:mm_cache_hits": "no images or sound are taken",
    "vllm:engine_sleep_state": "the engine has no sleep mode",
    "vllm:corrupted_requests": "vLLM has it with VLLM_COMPUTE_NANS_IN_LOGITS only",
    "vllm:watermark_requests": "no watermarks are written",
    "vllm:admission_rejections": "vLLM's queue limits are not the server's; twogear_requests_total counts rejections",
    "vllm:request_num_preemptions": "the engine tells the sum only: vllm:num_preemptions",
    "vllm:kv_block_lifetime_seconds": "vLLM samples pages with --kv-cache-metrics only",
    "vllm:kv_block_idle_before_evict_seconds": "vLLM samples pages with --kv-cache-metrics only",
    "vllm:kv_block_reuse_gap_seconds": "vLLM samples pages with --kv-cache-metrics only",
    "vllm:lora_requests_info": "vLLM has it with --enable-lora only, and so has the server",
}
"""Names of vLLM's that are not here, and why; docs/observability.md says the same."""


def vllm_source(name: str) -> str:
    """A file of the installed vLLM, which is not imported; skips the test where there is none."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    return (Path(spec.origin).parent / "v1" / "metrics" / name).read_text()


def of_vllm() -> Iterator[tuple[str, list[str]]]:
    """Each metric of vLLM's Prometheus logger with what its call says of labels and buckets."""
    for node in ast.walk(ast.parse(vllm_source("loggers.py"))):
        if isinstance(node, ast.Call):
            arguments = {keyword.arg: keyword.value for keyword in node.keywords}
            name = arguments.get("name")
            if isinstance(name, ast.Constant) and str(name.value).startswith("vllm:"):
                labels = arguments.get("labelnames")
                yield str(name.value), [] if labels is None else re.findall(r"'(\w+)'", ast.unparse(labels))
    yield "vllm:cache_config_info", []  # its name is in a variable there


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    engine = FakeEngine(always([*fmt.encode_text("one two three"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    engine.cached_tokens = 7
    return engine


async def families(client: Client, engine: FakeEngine) -> dict[str, Any]:
    async with client(engine) as http:
        text = (await http.get("/metrics")).text
    return parsed(text)


def parsed(text: str) -> dict[str, Any]:
    """The metrics by name, without the times at which counters were made."""
    found = {family.name: family for family in text_string_to_metric_families(text)}
    return {name: family for name, family in found.items() if not name.endswith("_created")}


async def test_every_name_of_vllm_is_here(client: Client, engine: FakeEngine) -> None:
    ours = await families(client, engine)
    theirs = {name.removesuffix("_total") if name not in ours else name: labels for name, labels in of_vllm()}
    assert len(theirs) > 40
    assert {name for name in theirs if name not in ours} == {name for name in LEFT_OUT if name in theirs}
    assert not [name for name in LEFT_OUT if name in ours]
    assert {name for name in ours if name.startswith("vllm:") and name not in theirs} == set(vllm_metrics.OLD_NAMES)
    for name, labels in theirs.items():
        if name in ours and name != "vllm:cache_config_info":
            assert {"model_name", "engine", *labels} - {"le"} == {
                label for sample in ours[name].samples for label in sample.labels if label != "le"
            }, name


async def test_old_names_say_what_todays_do(client: Client, engine: FakeEngine) -> None:
    engine.stats = Stats(1, 0, (PageGroup("global", 32, 3, 1, 4),))
    async with client(engine) as http:
        await http.post(CHAT, json=body())
        found = parsed((await http.get("/metrics")).text)
    for old, new in vllm_metrics.OLD_NAMES.items():
        told, today = ([sample.value for sample in found[name].samples] for name in (old, new))
        assert told == today
        assert told[0] > 0


def test_the_buckets_are_vllms() -> None:
    values = {}
    for node in ast.parse(vllm_source("buckets.py")).body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id.endswith("_BUCKETS")
        ):
            assert node.value is not None
            values[node.target.id] = ast.literal_eval(node.value)
    assert values["REQUEST_LATENCY_BUCKETS"] == vllm_metrics.REQUEST_SECONDS
    assert values["TIME_TO_FIRST_TOKEN_BUCKETS"] == vllm_metrics.FIRST_TOKEN_SECONDS
    assert values["INTER_TOKEN_LATENCY_BUCKETS"] == vllm_metrics.TOKEN_SECONDS
    assert values["REQUEST_PARAMS_N_BUCKETS"] == vllm_metrics.CHOICES
    assert values["ITERATION_TOKENS_BUCKETS"] == STEP_TOKENS
    assert vllm_metrics.TOKENS[:9] == (1, 2, 5, 10, 20, 50, 100, 200, 500)


def value(found: dict[str, Any], name: str, **labels: str) -> float:
    """Of the one sample with this name and these labels."""
    (only,) = (
        sample.value
        for family in found.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
    return float(only)


async def test_what_requests_add(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    tokens = len(fmt.encode_text("one two three")) + 1
    async with client(engine) as http:
        await http.post(CHAT, json=body(max_tokens=50))
        await http.post(CHAT, json=body(n=3, temperature=1, max_tokens=50))
        await http.post(CHAT, json=body(max_tokens=2, stream=True))
        engine.fail_after = 2
        await http.post(CHAT, json=body(stream=True))
        text = (await http.get("/metrics")).text
    found = parsed(text)
    prompt = len(engine.seen[0].prompt_ids)
    ended = {reason: value(found, "vllm:request_success_total", finished_reason=reason) for reason in (
        *("stop", "length", "abort", "error"),
    )}  # fmt: skip
    assert ended == {"stop": 4, "length": 1, "abort": 0, "error": 1}
    assert value(found, "vllm:generation_tokens_total") == 4 * tokens + 2 + 2
    assert value(found, "vllm:inter_token_latency_seconds_count") == 4 * (tokens - 1) + 1 + 1
    assert value(found, "vllm:prompt_tokens_total") == 6 * prompt
    assert value(found, "vllm:prefix_cache_queries_total") == 6 * prompt
    assert value(found, "vllm:prefix_cache_hits_total") == 6 * 7
    assert value(found, "vllm:prompt_tokens_by_source_total", source="local_compute") == 6 * (prompt - 7)
    assert value(found, "vllm:time_to_first_token_seconds_count") == 4
    for name in (
        *("e2e_request_latency", "request_queue_time", "request_inference_time", "request_prefill_time"),
        *("request_decode_time", "request_time_per_output_token"),
    ):
        assert value(found, f"vllm:{name}_seconds_count") == 3, name
    assert value(found, "vllm:request_params_n_sum") == 5
    assert value(found, "vllm:request_params_max_tokens_sum") == 102
    assert value(found, "vllm:request_generation_tokens_sum") == 4 * tokens + 2
    assert value(found, "vllm:request_max_num_generation_tokens_sum") == 2 * tokens + 2


async def test_what_the_engine_tells(client: Client, engine: FakeEngine) -> None:
    steps = tuple(range(len(STEP_TOKENS) + 1))
    engine.stats = Stats(2, 1, (PageGroup("global", 32, 1, 1, 2),), 3, steps, 4321)
    assert engine.ready is not None
    engine.ready = replace(engine.ready, cache_config={"block_size": "32", "num_gpu_blocks": "64"})
    found = await families(client, engine)
    assert value(found, "vllm:num_preemptions_total") == 3
    assert value(found, "vllm:num_requests_waiting_by_reason", reason="capacity") == 1
    assert value(found, "vllm:iteration_tokens_total_sum") == 4321
    assert value(found, "vllm:iteration_tokens_total_bucket", le="8.0") == 1
    assert value(found, "vllm:iteration_tokens_total_count") == sum(steps)
    assert value(found, "vllm:cache_config_info", block_size="32", num_gpu_blocks="64", engine="0") == 1


async def test_responses_are_counted_by_route(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        await http.post(CHAT, json=body())
        await http.post(CHAT, json=body(reasoning_mode="deep"))
        await http.get(f"/v1/models/{MODEL}")
        await http.get("/no/such/route/1")
        text = (await http.get("/metrics")).text
    found = parsed(text)
    assert value(found, "http_requests_total", handler=CHAT, method="POST", status="2xx") == 1
    assert value(found, "http_requests_total", handler=CHAT, status="4xx") == 1
    assert value(found, "http_requests_total", handler="/v1/models/{name:path}", status="2xx") == 1
    assert value(found, "http_requests_total", handler="none", status="4xx") == 1


def test_the_page_names_what_is_left_out() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    table = page.partition("and we do not:")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(vllm:\w+)`", table)) - {"vllm:num_preemptions"} == set(LEFT_OUT)
