"""`python -m deploy.ray [options] [-- MODEL AND OPTIONS OF twogear serve]`: Twogear on Ray Serve.

Without `--address` Ray is started on this machine, and ends with the command. With it, the application goes to a
cluster that runs, in place of the one that is there: replica after replica, without an end to what runs.
"""

import argparse
import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.ray_head import check_head

ROOT = Path(__file__).parents[2]
NAME = "twogear"
LONGEST_STREAM = 24 * 3600
"""Seconds. HAProxy begins anew whenever a replica comes or goes, and its old process ends after this what it has."""
ROUTED_BYTES = 1024 * 1024
"""Of a body that the router is shown; HAProxy holds as much for each connection."""
TUNED = ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "TWOGEAR_API_KEY", "VLLM_API_KEY", "HF_HOME", "HF_TOKEN")
"""What this command's environment says for all children, on whatever machine they are."""
POLL_SECONDS = 0.5
NO_ROOM = "to be scheduled"
"""In what Ray says of a replica for which no machine has room, after half a minute."""
OURS = ("--host", "--port", "--drain-seconds")


class StartError(Exception):
    """The application does not run; the message says why, in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 where it does not start."""
    try:
        return _run(parsed(sys.argv[1:] if argv is None else argv))
    except StartError as error:
        print(f"twogear: error: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 2


def parsed(given: Sequence[str]) -> argparse.Namespace:
    """The options, and in `serve` what each replica's server gets. Raises StartError."""
    dashes = given.index("--") if "--" in given else len(given)
    args = _parser().parse_args(given[:dashes])
    args.serve = list(given[dashes + 1 :])
    args.max_replicas = args.max_replicas or args.min_replicas
    _check(args)
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.ray",
        description="Twogear on Ray Serve. What stands after -- goes to each replica's `twogear serve`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--address", help="of the head of a Ray cluster, HOST:PORT; without it, Ray is started here")
    parser.add_argument("--host", default="127.0.0.1", help="the address that HAProxy listens on")
    parser.add_argument("--port", type=int, default=8000, help="the port that HAProxy listens on")
    parser.add_argument("--min-replicas", type=int, default=1, help="how many replicas there always are")
    parser.add_argument("--max-replicas", type=int, help="how many there may be; left out: no more than the fewest")
    parser.add_argument("--tokens-per-replica", type=float, default=4000.0, help="tokens to come that are one's work")
    parser.add_argument(
        "--upscale-seconds", type=float, default=10.0, help="how long there is too much before it grows"
    )
    parser.add_argument("--downscale-seconds", type=float, default=300.0, help="how long too little before it shrinks")
    parser.add_argument("--cpus", type=float, default=1.0, help="that Ray keeps for a replica")
    parser.add_argument("--gpus", type=float, default=0.0, help="that Ray gives a replica")
    parser.add_argument("--places", type=int, default=128, help="requests that a replica's engine runs at once")
    parser.add_argument(
        "--drain-seconds", type=float, default=300.0, help="how long a replica that goes lets requests run"
    )
    parser.add_argument("--twogear", default=str(ROOT / ".venv/bin/twogear"), help="the command, on each machine")
    parser.add_argument("--temp-dir", help="Ray's folder, where it is started here")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raises StartError."""
    if not 1 <= args.min_replicas <= args.max_replicas:
        raise StartError("--min-replicas must be at least 1, and --max-replicas no fewer.")
    if args.tokens_per_replica <= 0 or args.places < 1:
        raise StartError("--tokens-per-replica and --places must be more than 0.")
    if args.address is None and shutil.which(args.twogear) is None:
        raise StartError(f"there is no command {args.twogear}: make setup, or name it with --twogear.")
    engine = args.serve.index("--") if "--" in args.serve else len(args.serve)
    own = next((option for option in args.serve[:engine] if option.partition("=")[0] in OURS), None)
    if own is not None:
        raise StartError(f"{own} stands before the --: it is the deployment's, not a replica's.")


def _run(args: argparse.Namespace) -> int:
    if args.address is None:
        _check_port(args.host, args.port)
    _set_environment(args)
    import ray  # noqa: PLC0415 - it reads the environment when it is imported
    from ray import serve  # noqa: PLC0415

    _connect(ray, args)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    rays = (ray.exceptions.RayError, serve.exceptions.RayServeException, TimeoutError)
    try:
        _deploy(ray, serve, args, stopped)
        if not stopped.is_set():
            head = ray.get_runtime_context().gcs_address
            print(f"Ready at http://{args.host}:{args.port} (Ray's head is {head})", flush=True)  # noqa: T201 - a command
        if args.address is None:
            stopped.wait()
    except rays as error:
        raise StartError(f"Ray itself failed: {_line(error)}") from error
    finally:
        if args.address is None:
            with suppress(*rays):  # what does not end in time ends with Ray
                serve.shutdown()
        ray.shutdown()
    return 0


def _check_port(host: str, port: int) -> None:
    """HAProxy would share the port with another that shares it, and ends without a word where it cannot.

    Raises StartError.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"port {port} on {host} is taken; choose another with --port.") from error
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}.") from error


def _set_environment(args: argparse.Namespace) -> None:
    """For this process and, through `_connect`, for all of the application's. What the user has set stays."""
    folder = Path(tempfile.gettempdir()) / f"twogear-ray-{os.getuid()}-{args.port}"
    chosen = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # 15 otherwise: whatever else runs on the machine would come before the engines
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1",
        "RAY_SERVE_HAPROXY_INGRESS_REQUEST_ROUTER_BUFSIZE": str(ROUTED_BYTES),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_STREAM),
        "RAY_SERVE_PORT_QUARANTINE_S": "150",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(LONGEST_STREAM),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "10",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    if args.address is not None and _has_token():
        chosen["RAY_AUTH_MODE"] = (
            "token"  # Ray's default where it starts a cluster, and not where it joins one by address
        )
    os.environ.update({name: value for name, value in chosen.items() if name not in os.environ or name == "PYTHONPATH"})


def _has_token() -> bool:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    return "RAY_AUTH_TOKEN" in os.environ or Path(path).expanduser().is_file()


def _connect(ray: Any, args: argparse.Namespace) -> None:
    """Raises StartError."""
    if args.address is not None:
        try:
            check_head(args.address)
        except ConnectionError as error:
            raise StartError(f"--address: {error}") from error
    passed = {
        name: value for name, value in os.environ.items() if name.startswith("RAY_SERVE_") or name == "PYTHONPATH"
    }
    options: dict[str, Any] = {"runtime_env": {"env_vars": passed}, "log_to_driver": False, "namespace": NAME}
    if args.address is not None:
        options["address"] = args.address
        if args.address.startswith("127."):  # as the head was started here; else this one has another address than it
            options["_node_ip_address"] = "127.0.0.1"
    else:
        options |= {"include_dashboard": False, "object_store_memory": 80 * 1024 * 1024}
        options |= {"_node_ip_address": "127.0.0.1"} | ({"_temp_dir": args.temp_dir} if args.temp_dir else {})
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises that itself, where its own start takes too long
        raise StartError(f"no Ray answers at {args.address or 'this machine'}: {_line(error)}") from error


def _deploy(ray: Any, serve: Any, args: argparse.Namespace, stopped: threading.Event) -> None:
    """Returns once it serves, or is `stopped`. Raises StartError."""
    from deploy.ray.app import Scale, Served, application  # noqa: PLC0415 - Ray has to be set up

    if args.address is None:  # a cluster may grow
        check_room(args.min_replicas, {"CPU": args.cpus, "GPU": args.gpus}, ray.cluster_resources())
    environment = {name: os.environ[name] for name in TUNED if name in os.environ}
    served = Served(args.twogear, tuple(args.serve), environment, args.drain_seconds)
    scale = Scale(
        fewest=args.min_replicas,
        most=args.max_replicas,
        tokens=args.tokens_per_replica,
        up_seconds=args.upscale_seconds,
        down_seconds=args.downscale_seconds,
        cpus=args.cpus,
        gpus=args.gpus,
        places=args.places,
    )
    try:
        serve.start(http_options={"host": args.host, "port": args.port})
    except ray.exceptions.RayError as error:
        raise StartError(f"HAProxy did not start at {args.host}:{args.port}: {_line(error)}") from error
    target = serve.RunTarget(application(served, scale, NAME), name=NAME, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    _await_running(serve, served.version, stopped)


def check_room(replicas: int, each: Mapping[str, float], there: Mapping[str, float]) -> None:
    """Whether a machine with so many CPUs and GPUs has them for so many replicas. Raises StartError."""
    for name, needed in each.items():
        have = there.get(name, 0.0)
        if replicas * needed > have:
            most = int(have / needed)
            raise StartError(
                f"--min-replicas {replicas}: each takes {needed:g} of this machine's {have:g} {name}s, so that "
                f"{most} would fit; start fewer, or give each less with --{name.lower()}s."
            )


def _await_running(serve: Any, version: str, stopped: threading.Event) -> None:
    """Until all replicas are those of this version, or `stopped` is set. Raises StartError."""
    from deploy.ray.app import ENGINE, ROUTER  # noqa: PLC0415

    router = serve.get_deployment_handle(ROUTER, NAME)
    said = ""
    while not stopped.wait(POLL_SECONDS):
        told = serve.status().applications[NAME]
        if told.status == "RUNNING":
            return
        routing = told.deployments.get(ROUTER)
        if routing and routing.status == "HEALTHY" and (failure := router.failure.remote(version).result()):
            raise StartError(failure.removeprefix("twogear: error: "))
        if told.status == "DEPLOY_FAILED":
            raise StartError(_line(told.message))
        engines = told.deployments.get(ENGINE)
        if engines and NO_ROOM in engines.message and engines.message != said:
            said = engines.message
            print(f"twogear: it waits for room: {_line(said)}", file=sys.stderr)  # noqa: T201 - a command


def _line(error: object) -> str:
    """The reason in one line; an error of Ray's begins with where in the cluster it happened."""
    reason = getattr(error, "cause", None) or getattr(error, "__cause__", None) or error
    return next((line.strip() for line in str(reason).splitlines() if line.strip()), "no reason given")


if __name__ == "__main__":
    sys.exit(main())
