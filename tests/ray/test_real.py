"""Two replicas of the embedded model on Ray, for real: answers, streams, faults, scaling, and updates while it works.

The tests go on from one another in the order of this file.
"""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server.modes.profile import PROFILE_FOLDER
from tests.doc_blocks import ROOT
from tests.ray.deployment import PYTHON, START_SECONDS, TRIES, Deployment, loopback_alone, started, until, url_of
from tests.real_server import RealServer

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON.exists(), reason="Ray is not installed: make test-ray"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Ray listens everywhere, and a network of its own needs root"),
    pytest.mark.timeout(3600),
]
PORT = 8341
SUM = [{"role": "user", "content": "What is 17 + 25?"}]
LONG = "Count the letters of this text. " + "the quick brown fox jumps over the lazy dog " * 40
THINK = {"reasoning_mode": "reasoning", "temperature": 0, "max_tokens": 400, "ignore_eos": True}
THINKS = 'twogear_requests_running{mode="reasoning"} 1.0'
ENDLESS: dict[str, Any] = {
    "logit_bias": {"8": -100}, "ignore_eos": True, "temperature": 1.0, "thinking_token_budget": 3400,
}  # fmt: skip
"""The tag that ends the thinking is never drawn, and the end of the turn is none."""
DRAIN = ("--drain-seconds", "600")


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    with loopback_alone():
        yield


@pytest.fixture(scope="module")
def ray(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with started(PORT, tmp_path_factory.mktemp("ray"), "--min-replicas", "2", *DRAIN) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def plain(network: None) -> Iterator[str]:
    with RealServer() as server:
        yield server.url


def ask(url: str, **fields: Any) -> httpx.Response:
    asked = {"messages": SUM, **fields}
    return httpx.post(url + "/v1/chat/completions", json=asked, timeout=START_SECONDS)


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def said(response: httpx.Response) -> dict[str, Any]:
    """The answer and what it took, but for what was cached."""
    told = response.json()
    told["usage"].pop("prompt_tokens_details")
    return {"choices": told["choices"], "usage": told["usage"], "system_fingerprint": told["system_fingerprint"]}


@contextmanager
def thinker(url: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a request that thinks until it is told to end, or its client leaves."""
    fields = {"messages": SUM, "stream": True, "reasoning_mode": "reasoning", "max_tokens": 4000, **ENDLESS}
    with httpx.stream("POST", url + "/v1/chat/completions", json=fields) as response:
        yield events(response)


@pytest.mark.parametrize("fields", [{}, {"temperature": 0, "reasoning_mode": "reasoning", "max_tokens": 200}])
def test_answers_are_those_of_a_plain_server(ray: Deployment, plain: str, fields: dict[str, Any]) -> None:
    for number in range(6):
        asked = {"messages": [{"role": "user", "content": f"What is {number} + 25?"}], **fields}
        assert said(ask(ray.url, **asked)) == said(ask(plain, **asked))


def test_engines_come_after_nothing_else_on_the_machine(ray: Deployment) -> None:
    """Ray starts its workers with a niceness of 15, and what they start has it too."""
    assert {child.nice() for child in ray.children()} == {psutil.Process(ray.process.pid).nice()}


def test_a_stream_says_what_the_whole_says(ray: Deployment) -> None:
    whole = ask(ray.url).json()["choices"][0]["message"]["content"]
    with httpx.stream("POST", ray.url + "/v1/chat/completions", json={"messages": SUM, "stream": True}) as response:
        text = "".join(c["delta"].get("content") or "" for one in events(response) for c in one["choices"])
    assert text == whole


def test_bad_input_is_refused_as_ever(ray: Deployment) -> None:
    response = ask(ray.url, reasonning_mode="reasoning")
    assert response.status_code == 400
    assert "reasoning_mode" in response.json()["error"]["message"]


def test_both_work_and_a_conversation_stays_where_its_pages_are(ray: Deployment) -> None:
    with thinker(ray.url) as first, thinker(ray.url) as second:
        next(first)
        next(second)
        until(lambda: ray.running() == 2, "both run")
        counts = [
            httpx.get(url_of(child) + "/metrics").text.count('requests_running{mode="reasoning"} 1.0')
            for child in ray.children()
        ]
        assert counts == [1, 1]
    messages = [{"role": "user", "content": LONG}]
    for _ in range(4):
        told = ask(ray.url, messages=messages, max_tokens=8).json()
        if len(messages) > 1:
            assert told["usage"]["prompt_tokens_details"]["cached_tokens"] > 300
        messages += [{"role": "assistant", "content": told["choices"][0]["message"]["content"]}, *SUM]


def test_a_client_that_leaves_frees_the_engine(ray: Deployment) -> None:
    until(lambda: ray.running() == 0, "those of before have left")
    with thinker(ray.url) as told:
        next(told)
        until(lambda: ray.running() == 1, "it runs")
    until(lambda: ray.running() == 0, "it was freed")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            ray.url + "/v1/chat/completions", json={"messages": SUM, **THINK, **ENDLESS, "max_tokens": 4000}, timeout=2
        )
    until(lambda: ray.running() == 0, "it was freed, whose answer had not begun")


def test_control_and_stored_responses_reach_the_replica_that_has_them(ray: Deployment) -> None:
    for _ in range(4):
        with thinker(ray.url) as told:
            assert control(ray.url, next(told)["id"]).status_code == 200
            reasons = [c.get("reasoning_finish_reason") for one in told for c in one["choices"]]
            assert "stopped" in reasons
    asked = {"model": "twogear-tiny", "input": "What is 17 + 25?"}
    name = httpx.post(ray.url + "/v1/responses", json=asked).json()["id"]
    for _ in range(4):
        assert httpx.get(f"{ray.url}/v1/responses/{name}").json()["id"] == name
        on = httpx.post(ray.url + "/v1/responses", json={**asked, "previous_response_id": name})
        assert on.status_code == 200, on.text
        name = on.json()["id"]
    assert httpx.get(ray.url + "/v1/responses/resp_0123456789abcdef01234567").status_code == 404


def test_a_lost_engine_gets_no_requests_until_it_is_back(ray: Deployment) -> None:
    with thinker(ray.url) as told:
        next(told)
        until(lambda: ray.running() == 1, "it runs")
        busy = busy_of(ray)
        (engine,) = [one for one in busy.children() if "engine" in one.cmdline()]
        engine.kill()
        assert "error" in list(told)[-1]
    until(lambda: httpx.get(url_of(busy) + "/health").status_code == 503, "the loss is known")
    time.sleep(1)
    assert [_status(ray.url) for _ in range(10)] == [200] * 10
    until(lambda: ray.serves_alone(2), "it is back, in the same replica")
    assert busy.is_running()


@pytest.mark.parametrize("victim", ["child", "replica"])
def test_when_one_is_killed_the_other_serves_and_it_comes_back(ray: Deployment, victim: str) -> None:
    with thinker(ray.url) as told:
        next(told)
        until(lambda: ray.running() == 1, "it runs")
        busy = busy_of(ray)
        before = {one.pid for one in ray.children()}
        parent = busy.parent()
        assert parent is not None
        (busy if victim == "child" else parent).send_signal(signal.SIGKILL)
        if victim == "child":
            assert "engine of this replica ended" in list(told)[-1]["error"]["message"]
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                list(told)
        bad = [code for code in (_status(ray.url) for _ in range(20)) if code != 200]
        assert len(bad) <= 2, bad
    until(lambda: not busy.is_running() or busy.status() == "zombie", "the child has ended")
    until(lambda: ray.serves_alone(2), "there are two again")
    assert {one.pid for one in ray.children()} != before
    until(lambda: all(_status(ray.url) == 200 for _ in range(5)), "it serves")


def test_a_killed_haproxy_cuts_its_streams_and_serves_again(ray: Deployment) -> None:
    before = {one.pid for one in ray.children()}
    with thinker(ray.url) as told:
        next(told)
        for one in ray.haproxies():
            one.kill()
        with pytest.raises(httpx.TransportError):
            list(told)
    serves_again(ray)
    until(lambda: ray.running() == 0, "the engine was freed")
    assert {one.pid for one in ray.children()} == before


def test_a_killed_manager_of_haproxy_leaves_no_other_behind(ray: Deployment) -> None:
    """It would share the port with the new one, and send requests to replicas that are gone."""
    before = ray.haproxies()
    (manager,) = ray.actors("HAProxyManager")
    manager.kill()
    until(lambda: not any(one.is_running() and one.status() != "zombie" for one in before), "HAProxy has ended")
    until(lambda: len(ray.haproxies()) >= 1, "there is another")
    serves_again(ray)


def test_a_killed_router_is_started_again_and_streams_go_on(ray: Deployment) -> None:
    with thinker(ray.url) as told:
        next(told)
        (router,) = ray.actors("ServeReplica:twogear:router")
        router.kill()
        assert {_status(ray.url) for _ in range(5)} <= {200, 503}
        assert [c["finish_reason"] for one in told for c in one["choices"] if c["finish_reason"]] != []
    until(lambda: [one for one in ray.actors("ServeReplica:twogear:router") if one != router] != [], "there is another")
    serves_again(ray)
    with thinker(ray.url) as told:
        name = next(told)["id"]
        assert control(ray.url, name).status_code == 200
        assert "stopped" in [c.get("reasoning_finish_reason") for one in told for c in one["choices"]]


@pytest.mark.parametrize("title", ["ServeController", "ProxyActor"])
def test_rays_own_parts_may_be_killed_while_it_serves(ray: Deployment, title: str) -> None:
    (victim,) = ray.actors(title)
    with Load(ray.url, 2, 1) as load:
        victim.kill()
        until(lambda: [one for one in ray.actors(title) if one != victim] != [], "there is another")
        until(lambda: load.done >= 6, "requests go on")
    assert load.lost == []
    assert ray.serves_alone(2)


def serves_again(ray: Deployment) -> None:
    """Answers, and fails no more once it does."""
    until(lambda: _status(ray.url) == 200, "it serves")
    assert [_status(ray.url) for _ in range(20)] == [200] * 20


def control(url: str, name: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions/{name}/control", json={"action": "end_reasoning"})


def busy_of(ray: Deployment) -> psutil.Process:
    """The one child in which a request thinks."""
    (busy,) = [one for one in ray.children() if THINKS in httpx.get(url_of(one) + "/metrics").text]
    return busy


def _status(url: str) -> int:
    try:
        return ask(url).status_code
    except httpx.HTTPError:
        return 0


class Load:
    """Clients that ask one after the other until it is stopped: `thinkers` of them think, with `fields` besides."""

    def __init__(self, url: str, clients: int, thinkers: int, **fields: Any) -> None:
        self.lost: list[str] = []
        self.done = 0
        self._url = url
        self._fields = fields
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number < thinkers,)) for number in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, thinks: bool) -> None:
        fields = {"messages": SUM, "stream": True, **(THINK | self._fields if thinks else {})}
        while not self._stopped.is_set():
            try:
                with httpx.stream("POST", self._url + "/v1/chat/completions", json=fields) as response:
                    text = response.read().decode()
                if response.status_code != 200 or not text.endswith("data: [DONE]\n\n") or '"error"' in text:
                    self.lost.append(f"{response.status_code} {text[-300:]}")
            except httpx.HTTPError as error:
                self.lost.append(repr(error))
            self.done += 1


def test_an_update_that_does_not_start_leaves_the_old_ones(ray: Deployment) -> None:
    before = {one.pid for one in ray.children()}
    with Load(ray.url, 2, 1) as load:
        told = ray.update("--min-replicas", "2", *DRAIN, "--", "/no-such-folder", code=2)
        assert "no-such-folder" in told
    assert load.lost == []
    assert {one.pid for one in ray.children()} == before


def test_an_update_loses_no_request(ray: Deployment) -> None:
    before = {one.pid for one in ray.children()}
    with Load(ray.url, 3, 2, max_tokens=4000, **ENDLESS) as load:
        ray.update("--min-replicas", "2", *DRAIN, "--", "--max-waiting", "100")
        until(lambda: ray.serves_alone(2) and not before & {one.pid for one in ray.children()}, "all are new")
    assert load.lost == []
    assert load.done >= 3


def test_it_shrinks_and_grows_with_the_tokens_to_come_and_loses_no_request(ray: Deployment) -> None:
    with Load(ray.url, 1, 0) as load:
        ray.update(
            "--min-replicas", "1", "--max-replicas", "2", "--tokens-per-replica", "300",
            "--upscale-seconds", "1", "--downscale-seconds", "3", *DRAIN, "--", "--max-waiting", "100",
        )  # fmt: skip
        until(lambda: ray.serves_alone(1), "one is enough")
        with Load(ray.url, 6, 6) as more:
            until(lambda: ray.serves_alone(2), "two are needed")
        until(lambda: ray.serves_alone(1), "one is enough again")
    assert load.lost == more.lost == []
    assert more.done >= 6


def test_at_its_end_nothing_is_left(ray: Deployment) -> None:
    children = ray.children()
    assert children
    assert ray.stop() == 0
    until(lambda: not any(one.is_running() and one.status() != "zombie" for one in children), "they have ended", 60)


def test_it_can_be_ended_before_it_is_ready(network: None, tmp_path: Path) -> None:
    deployment = Deployment(PORT + 1, tmp_path)
    until(deployment.starts_a_server, "a replica starts")
    assert deployment.stop() == 0
    assert not deployment.head


def refused(network: None, tmp_path: Path, *arguments: str) -> str:
    """What the command says that does not start: one line."""
    for _ in range(TRIES):
        deployment = Deployment(PORT + 1, tmp_path, *arguments)
        deployment.process.wait(1800)
        assert deployment.stop() == 2, "\n".join(deployment.output)
        if not deployment.was_too_slow():
            break
    return next(line for line in deployment.output if line.startswith("twogear: error: "))


def test_a_head_that_is_not_there_is_refused(network: None, tmp_path: Path) -> None:
    line = refused(network, tmp_path, "--address", "127.0.0.1:9")
    assert "no Ray answers at 127.0.0.1:9" in line


def test_what_twogear_refuses_is_told(network: None, tmp_path: Path) -> None:
    assert "no-such-folder" in refused(network, tmp_path, "--", "/no-such-folder")


def test_the_port_is_not_a_replicas(network: None, tmp_path: Path) -> None:
    assert "--port" in refused(network, tmp_path, "--", "--port", "8000")


def test_a_port_that_is_taken_is_refused(network: None, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", PORT + 1)):
        line = refused(network, tmp_path)
    assert f"port {PORT + 1} on 127.0.0.1 is taken; choose another with --port" in line


def test_more_replicas_than_there_are_cores_are_refused(network: None, tmp_path: Path) -> None:
    line = refused(network, tmp_path, "--min-replicas", "1000", "--cpus", "1")
    assert re.search(r"--min-replicas 1000: each takes 1 of this machine's \d+ CPUs, so that \d+ would fit", line)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--served-model-name another", "another:standard"),
        ("--profile {profile}", "profile is "),
    ],
)
def test_a_replica_of_another_model_or_profile_than_the_rest_is_refused(
    network: None, tmp_path: Path, options: str, told: str
) -> None:
    first, twogear, profile = (tmp_path / name for name in ("first", "twogear", "other.toml"))
    text = (PROFILE_FOLDER / "twogear_tiny.toml").read_text()
    profile.write_text(text.replace("temperature = 0.6", "temperature = 0.7"))
    twogear.write_text(
        "#!/bin/sh\n"
        f'if mkdir {first} 2>/dev/null; then exec {ROOT}/.venv/bin/twogear "$@"; fi\n'
        f'exec {ROOT}/.venv/bin/twogear "$@" {options.format(profile=profile)}\n'
    )
    twogear.chmod(0o755)
    line = refused(network, tmp_path, "--min-replicas", "2", "--twogear", str(twogear))
    assert "serves something else than the others" in line
    assert told in line
