"""The Ray Serve application: replicas that each have a `twogear serve`, and the router that HAProxy asks for a POST."""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from deploy.ray.asked import Asked
from deploy.ray.child import Child, ChildError
from deploy.ray.fleet import Fleet, Told
from deploy.ray.load import STAT, Expected, TokensPerReplica
from deploy.ray.members import Members, Peers, Telling
from deploy.ray.proxy import TICKET, Message, Proxy, Receive, Scope, Send, settled
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.deployment import Application

ENGINE = "engine"
ROUTER = "router"
TELL_SECONDS = 0.25
LOOK_BACK_SECONDS = 11.0
"""The shortest time over which Ray takes the mean of what replicas tell."""
LAST_WORDS = 0.2
"""Seconds for what was sent when the child ended to leave this process."""
MOST_ONGOING = 1_000_000
"""How many requests wait and run is for the server to limit: it tells clients so in words."""
KEY = "TWOGEAR_API_KEY"
OWN = ("RAY_", "PYTHONPATH", "OMP_NUM_THREADS")
"""What a child does not get of a replica's environment: Ray sets these for itself."""


@dataclass(frozen=True)
class Served:
    """What a replica serves, and how. `arguments`: of `twogear serve`. `environment`: what its children get besides."""

    twogear: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    drain_seconds: float

    @property
    def version(self) -> str:
        """Replicas of the same have to serve the same. Only those of another are put in their place."""
        told = [self.twogear, self.arguments, self.environment, self.drain_seconds]
        return _digest(json.dumps(told, sort_keys=True).encode(), _code())

    @property
    def command(self) -> list[str]:
        """The child's."""
        own = ["--host", "127.0.0.1", "--port", "0", "--drain-seconds", f"{self.drain_seconds:g}"]
        return [self.twogear, "serve", *own, *self.arguments]


class Engine:
    """One replica."""

    async def __init__(self, served: Served, application: str) -> None:  # type: ignore[misc]
        self._served = served
        self._loop = asyncio.get_running_loop()
        self._name = serve.get_replica_context().replica_id.to_full_id_str()
        self._router = serve.get_deployment_handle(ROUTER, application)
        self._expected = Expected()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
        self._child = Child(served.command, inherited | served.environment, self._lose)
        self._facts: dict[str, Any] = {}
        self._url = await self._join()
        self._proxy = Proxy(self._url, Peers(self._peers, RayError), self._end)
        self._telling = asyncio.create_task(self._tell())

    def __serve_build_asgi_app__(self) -> Proxy:
        """Called by Ray."""
        return self._proxy

    async def _join(self) -> str:
        """The URL of the child, once it runs and the router lets it in. Raises RuntimeError, and the router knows."""
        version = self._served.version
        try:
            url = await self._child.start()
        except ChildError as error:
            refusal = str(error)
            await self._router.fail.remote(version, refusal)
        else:
            self._facts = await _facts(url)
            refusal = await self._router.join.remote(version, self._facts)
            if not refusal:
                return url
            await self._child.end(0.0)
        raise RuntimeError(refusal)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray."""
        text, _ = await _get(self._url, "/metrics")
        return {STAT: self._expected.read(text)}

    async def _peers(self) -> Sequence[str]:
        """Raises RayError where the router is gone."""
        urls: Sequence[str] = await self._router.peers.remote(self._name)
        return urls

    async def _tell(self) -> None:
        telling = Telling(
            lambda told, is_ready: self._router.tell.remote(self._name, told, is_ready),
            lambda: self._router.join.remote(self._served.version, self._facts),
        )
        while True:
            await asyncio.sleep(TELL_SECONDS)
            told = self._proxy.ledger.take()
            telling.turn(told, is_ready=await _is_ready(self._url))

    async def _end(self) -> None:
        self._telling.cancel()
        await self._child.end(self._served.drain_seconds)

    def _lose(self) -> None:
        asyncio.run_coroutine_threadsafe(self._leave(), self._loop)

    async def _leave(self) -> None:
        """This replica ends with its child, at once: Ray starts another, and HAProxy sends nothing here any more."""
        self._proxy.is_lost = True
        await settled(self._proxy, LAST_WORDS)
        await asyncio.sleep(0.05)
        os._exit(1)


class Router:
    """HAProxy asks it for the replica of each POST: `POST /internal/route` with the body of the request."""

    def __init__(self, application: str, places: int) -> None:
        self._engines = serve.get_deployment_handle(ENGINE, application)
        self._fleet = Fleet(places)
        self._members = Members()

    def __serve_build_asgi_app__(self) -> Callable[[Scope, Receive, Send], Any]:
        """Called by Ray."""

        async def serve_one(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(scope, receive, send)

        return serve_one  # a function, and not a method: uvicorn takes that for an app of ASGI 2

    async def join(self, version: str, facts: dict[str, Any]) -> str:
        """Empty if a replica of this version may serve beside the others; else what is wrong, in words."""
        return self._members.join(version, facts)

    async def fail(self, version: str, reason: str) -> None:
        """A replica of this version did not start."""
        self._members.fail(version, reason)

    async def failure(self, version: str) -> str:
        """Why a replica of this version did not start; empty if none failed. It is told once."""
        return self._members.failure(version)

    async def peers(self, name: str) -> list[str]:
        """The URLs of all replicas but the one of this name."""
        there = await self._there()
        return [url for other, url in there.items() if other != name]

    async def tell(self, name: str, told: dict[str, Told], is_ready: bool) -> None:
        """What a replica tells of its requests, and whether its engine takes more: one that was lost is coming back."""
        self._fleet.tell(told)
        self._members.note(name, is_ready=is_ready)

    async def loads(self) -> dict[str, float]:
        """The tokens that are yet to come, by replica."""
        return self._fleet.loads()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        name, ticket = await self._route(bytes(body))
        headers = {TICKET.decode(): ticket} if ticket else {}
        answer = json.dumps({"replica_id": name, "request_headers": headers}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": answer, "more_body": False})

    async def _route(self, body: bytes) -> tuple[str, str]:
        there = await self._there()
        names = self._members.able(there)
        asked = Asked.of(body)
        if asked is None:
            return self._fleet.least(names), ""
        return self._fleet.choose(asked, names, time.monotonic())

    async def _there(self) -> dict[str, str]:
        """The URLs of all replicas that take requests, by name, once there is one."""
        there: dict[str, str] = {}

        def note(replicas: Sequence[Any]) -> Any:
            for replica in replicas:
                told = replica._replica_info
                there[told.replica_id.to_full_id_str()] = f"http://{told.node_ip}:{told.backend_http_port}"
            return replicas[0]

        async with self._engines.choose_replica(note, _reserve=False):
            return there


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, and what each gets of its machine. Times in seconds."""

    fewest: int = 1
    most: int = 1
    tokens: float = 4000.0
    up_seconds: float = 10.0
    down_seconds: float = 300.0
    cpus: float = 1.0
    gpus: float = 0.0
    places: int = 128


def application(served: Served, scale: Scale, name: str) -> Application:
    """The app of this name."""
    engine = serve.deployment(serve.ingress()(Engine)).options(
        _internal=True,
        version=served.version,
        name=ENGINE,
        max_ongoing_requests=MOST_ONGOING,
        health_check_period_s=1,
        max_surge_percent=25,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=_grace(served.drain_seconds),
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=scale.fewest,
            initial_replicas=scale.fewest,
            max_replicas=scale.most,
            upscale_delay_s=scale.up_seconds,
            downscale_delay_s=scale.down_seconds,
            look_back_period_s=LOOK_BACK_SECONDS,
            policy=AutoscalingPolicy(policy_function=TokensPerReplica, policy_kwargs={"tokens": scale.tokens}),
        ),
        request_router_config=RequestRouterConfig(request_router_class="deploy.ray.request_router.Offering"),
    )
    router = serve.deployment(serve.ingress()(Router)).options(
        _internal=True,
        version=_digest(f"{name} {scale.places}".encode(), _code()),
        max_surge_percent=100,
        name=ROUTER,
        max_ongoing_requests=MOST_ONGOING,
        health_check_period_s=1,
        ray_actor_options={"num_cpus": 0},
    )
    app: Application = engine.bind(served, name)
    app._with_ingress_request_router(router.bind(name, scale.places))
    return app


def _code() -> bytes:
    """What runs in replicas, beside their children."""
    return b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _grace(drain_seconds: float) -> float:
    """Until Ray ends a replica by force: HAProxy's time to let go of it, what runs, and the end of the child."""
    letting_go = float(os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"])
    return letting_go + drain_seconds + 20.0


async def _facts(url: str) -> dict[str, Any]:
    """What has to be the same for all replicas: the models and modes, and a digest of what each makes of a request."""
    text, _ = await _get(url, "/v1/models")
    models = [{name: value for name, value in one.items() if name != "created"} for one in json.loads(text)["data"]]
    made = [json.dumps(models, sort_keys=True).encode()]
    for model in models:
        body = {"model": model["id"], "messages": [{"role": "user", "content": "Which profile is this?"}]}
        _, rendered = await _get(url, "/v1/chat/completions/render", body)
        rendered.pop("request_id", None)
        made.append(json.dumps(rendered, sort_keys=True).encode())
    return {
        "models": ", ".join(model["id"] for model in models),
        "weights": ", ".join(sorted({str(model.get("weights")) for model in models})),
        "profile": _digest(*made),
    }


async def _get(url: str, path: str, body: object = None) -> tuple[str, dict[str, Any]]:
    """The text of an answer of the child, and what it says if it is a JSON object. Raises aiohttp.ClientError."""
    key = os.environ.get(KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    method = "GET" if body is None else "POST"
    async with (
        aiohttp.ClientSession(headers=headers, raise_for_status=True) as session,
        session.request(method, url + path, json=body) as response,
    ):
        text = await response.text()
        return text, json.loads(text) if response.content_type == "application/json" else {}


async def _is_ready(url: str) -> bool:
    try:
        await _get(url, "/health")
    except (aiohttp.ClientError, TimeoutError):
        return False
    return True


async def _live(receive: Receive, send: Send) -> None:
    for phase in ("startup", "shutdown"):
        await receive()
        message: Message = {"type": f"lifespan.{phase}.complete"}
        await send(message)
