"""The Helm chart: helm, Kubernetes's schemas and our own argument parser take what it makes. docs/kubernetes.md too."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx
import jsonschema
import pytest
import yaml

from chat_templates.format import ChatFormat
from engine.defaults import Nodes
from server import cli
from server.app import create_app
from server.commands import serve
from server.engine_client import EngineStatus
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.doc_blocks import BLOCKS, ROOT, Block
from tests.fake_engine import FakeEngine
from tests.kubernetes.custom_resources import SCHEMAS
from tests.kubernetes.tools import helm, install, validate

CHART = ROOT / "deploy" / "kubernetes"
PAGE = [block for block in BLOCKS if block.page == "docs/kubernetes.md"]
VALUES = [block for block in PAGE if block.language == "yaml"]
Values = dict[str, Any]
PROFILE = (PROFILE_FOLDER / "twogear_tiny.toml").read_text()
ALL: Values = {
    "model": "/models/exaone",
    "servedModelName": "exaone",
    "profile": PROFILE,
    "extraArgs": ["--isolate-keys", "--max-waiting", "64"],
    "engineArgs": ["--tensor-parallel-size", "2"],
    "apiServerCount": 2,
    "gpus": 2,
    "replicas": 3,
    "drainSeconds": 300,
    "apiKeys": {"existingSecret": "keys"},
    "apiKey": {"existingSecret": "key"},
    "hubToken": {"existingSecret": "hub"},
    "cache": {"existingClaim": "models"},
    "imagePullSecrets": [{"name": "registry"}],
    "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}},
    "autoscaling": {"kind": "hpa", "minReplicas": 2, "maxReplicas": 8},
    "serviceMonitor": {"enabled": True, "labels": {"release": "x"}, "authorization": {"existingSecret": "key"}},
    "httpRoute": {
        "enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["llm.example.org"], "toInferencePool": True,
    },
    "inferencePool": {"enabled": True, "endpointPicker": {"name": "picker"}},
    "kvEvents": {"enabled": True},
    "podLabels": {"team": "a"}, "podAnnotations": {"note": "b"}, "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "high", "runtimeClassName": "nvidia", "serviceAccountName": "server",
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
    "extraVolumeMounts": [{"name": "models", "mountPath": "/models"}],
}  # fmt: skip
KEDA: Values = {
    "autoscaling": {"kind": "keda"}, "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]},
    "dataParallelSize": 2, "podDisruptionBudget": {"enabled": False},
}  # fmt: skip
NODES: Values = {
    "nodes": 2, "gpus": 8, "engineArgs": ["--tensor-parallel-size", "16"], "replicas": 3,
    "inferencePool": {"enabled": True, "endpointPicker": {"name": "picker"}},
}  # fmt: skip
EVERY: dict[str, Values] = {
    "defaults": {}, "all": ALL, "keda": KEDA,
    "nodes": NODES, "nodes, scaled": {**NODES, "autoscaling": {"kind": "hpa"}},
}  # fmt: skip
EVERY |= {f"docs {number}": yaml.safe_load(block.code) for number, block in enumerate(VALUES)}


@pytest.fixture(autouse=True, scope="module")
def tools() -> None:
    install()


@pytest.fixture(scope="module")
def fmt() -> ChatFormat:
    return ChatFormat.from_folder(EMBEDDED_MODEL)


def templated(values: Values) -> str:
    """The manifests of a release `a` in the namespace `n`."""
    done = helm("template", "a", str(CHART), "--namespace", "n", *_set(values))
    assert done.returncode == 0, done.stderr
    return done.stdout


def _set(values: Values) -> list[str]:
    return [part for name, value in values.items() for part in ("--set-json", f"{name}={json.dumps(value)}")]


@cache
def manifests(name: str) -> dict[str, dict[str, Any]]:
    """By kind, of which there is one each."""
    made = [one for one in yaml.safe_load_all(templated(EVERY[name])) if one is not None]
    kinds = {one["kind"]: one for one in made}
    assert len(kinds) == len(made)
    return kinds


def pods(name: str) -> list[dict[str, Any]]:
    """The templates of pods; the first is of those that take requests."""
    if (group := manifests(name).get("LeaderWorkerSet")) is None:
        return [manifests(name)["Deployment"]["spec"]["template"]]
    of_group = group["spec"]["leaderWorkerTemplate"]
    return [of_group["leaderTemplate"], of_group["workerTemplate"]]


def container(name: str, which: int = 0) -> dict[str, Any]:
    (only,) = pods(name)[which]["spec"]["containers"]
    return cast("dict[str, Any]", only)


def served_name(values: Values) -> str:
    """The name that clients send, as the server makes it of a folder or a hub id."""
    model = values.get("model", Settings().model)
    return str(values.get("servedModelName") or (Path(model).name if model.startswith("/") else model))


@pytest.mark.parametrize("name", EVERY)
def test_helm_lints_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(EVERY[name]))
    done = helm("lint", "--strict", "--quiet", str(CHART), "--values", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", EVERY)
def test_manifests_fit_kubernetess_schemas(name: str) -> None:
    done = validate(templated(EVERY[name]))
    assert done.returncode == 0, done.stdout + done.stderr
    warned = re.findall(r"schema for kind (\w+)", done.stdout)
    assert set(warned) == {kind for kind in manifests(name) if kind in SCHEMAS}
    for kind in warned:
        jsonschema.Draft202012Validator(SCHEMAS[kind]).validate(manifests(name)[kind])


@pytest.mark.parametrize("name", EVERY)
def test_pods_fit_kubernetess_schema(name: str) -> None:
    for pod in pods(name):
        made = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "a"}, "template": pod}
        done = validate(yaml.safe_dump(made))
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_field_would_be_found() -> None:
    assert "livenesProbe" in validate(templated({}).replace("livenessProbe", "livenesProbe")).stdout
    route = json.loads(json.dumps(manifests("all")["HTTPRoute"]).replace("backendRefs", "backendRef"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMAS["HTTPRoute"]).validate(route)


def test_all_kinds_are_tried() -> None:
    files = [path.read_text() for path in (CHART / "templates").glob("*.yaml")]
    written = {kind for text in files for kind in re.findall(r"^kind: (\w+)", text, re.MULTILINE)}
    assert {kind for name in EVERY for kind in manifests(name)} == written


def test_every_value_has_a_schema_and_is_set_by_the_tests() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]) == {*values, "global"}  # helm's own
    left = {"image", "startupSeconds", "preStopSeconds", "resources", "strategy", "sharedMemory"}
    left |= {"maxConnectionsPerAddress", "topologySpreadConstraints"}  # their defaults are not empty
    assert set(values) - {*ALL, *KEDA, *NODES} == left


def filled_in(arguments: list[str], rank: int = 0) -> list[str]:
    """With what Kubernetes and LeaderWorkerSet put there, in the pod of this rank."""
    known = {"$(POD_IP)": "10.0.0.1", "$(LWS_WORKER_INDEX)": str(rank), "$(LWS_LEADER_ADDRESS)": "a-0.a.n"}
    return [re.sub(r"\$\(\w+\)", lambda found: known[found[0]], argument) for argument in arguments]


def test_the_other_nodes_of_a_group_have_workers_and_take_no_requests() -> None:
    first, other = container("nodes"), container("nodes", 1)
    assert other["args"] == first["args"]
    _, *rest = filled_in(other["args"], rank=1)
    engine = cli._parse("serve", cast("cli.Command", serve), rest).engine_options
    assert Nodes.of(engine) == Nodes(2, 1)
    assert engine[engine.index("--master-addr") + 1] == "a-0.a.n"
    assert not {"ports", "startupProbe", "livenessProbe", "readinessProbe"} & other.keys()
    made = manifests("nodes")
    of_first = {"leaderworkerset.sigs.k8s.io/worker-index": "0"}
    assert of_first.items() <= made["Service"]["spec"]["selector"].items()
    assert of_first.items() <= made["InferencePool"]["spec"]["selector"]["matchLabels"].items()
    assert made["LeaderWorkerSet"]["spec"]["replicas"] == 3
    scaled = manifests("nodes, scaled")
    assert "replicas" not in scaled["LeaderWorkerSet"]["spec"]
    target = scaled["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    group = scaled["LeaderWorkerSet"]
    assert target == {"apiVersion": group["apiVersion"], "kind": group["kind"], "name": group["metadata"]["name"]}


@pytest.mark.parametrize("name", EVERY)
def test_our_own_parser_takes_the_command(name: str) -> None:
    only = container(name)
    assert only["command"] == ["twogear"]
    command, *rest = filled_in(only["args"])
    assert command == "serve"
    args = cli._parse(command, cast("cli.Command", serve), rest)
    settings, engine = serve.settings_of(args, {}), args.engine_options
    (port,) = [one["containerPort"] for one in only["ports"] if one["name"] == "http"]
    values = EVERY[name]
    assert (settings.host, settings.port) == ("0.0.0.0", port)
    assert settings.model == values.get("model", Settings().model)
    assert settings.data_parallel_size == values.get("dataParallelSize", 1)
    assert settings.api_server_count == values.get("apiServerCount", 1)
    assert settings.drain_seconds == values.get("drainSeconds", 120)
    assert Nodes.of(engine) == Nodes(values.get("nodes", 1), 0)
    if "engineArgs" in values:
        assert engine[: len(values["engineArgs"])] == values["engineArgs"]
    if values.get("kvEvents", {}).get("enabled"):
        events = json.loads(engine[engine.index("--kv-events-config") + 1])
        assert events["topic"] == f"kv@10.0.0.1@{served_name(values)}"
        assert events["endpoint"] == "tcp://*:5557"


@pytest.mark.parametrize("name", EVERY)
def test_a_pod_that_ends_has_the_time_for_it(name: str) -> None:
    pod, only = pods(name)[0]["spec"], container(name)
    drain = float(only["args"][only["args"].index("--drain-seconds") + 1])
    waits = only["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= waits + drain + 5
    readiness = only["readinessProbe"]
    assert waits >= 1
    assert readiness["httpGet"]["path"] == "/health"


async def test_the_probes_are_right_while_the_model_loads(fmt: ChatFormat) -> None:
    engine = FakeEngine(lambda _prompt: iter(()), (fmt.end_of_turn_id,))
    app = create_app(engine, Settings(), load_profile(PROFILE_FOLDER / "twogear_tiny.toml"), fmt)
    only = container("defaults")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://10.0.0.1:8000") as http:

        async def passes(probe: str) -> bool:
            return (await http.get(only[probe]["httpGet"]["path"])).is_success

        assert [await passes(one) for one in ("startupProbe", "livenessProbe", "readinessProbe")] == [True] * 3
        engine.status, engine.ready = EngineStatus("loading", "weights", 0.5), None
        assert await passes("startupProbe")
        assert await passes("livenessProbe")
        assert not await passes("readinessProbe")
        metrics = (await http.get("/metrics")).text
    asked = {name for one in ("all", "keda") for name in re.findall(r"twogear_requests_\w+", templated(EVERY[one]))}
    assert asked == {"twogear_requests_running", "twogear_requests_waiting"}
    assert not [name for name in asked if f"\n{name}{{" not in metrics]


def test_names_meet() -> None:
    made = manifests("all")
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        made["Deployment"]["spec"]["selector"]["matchLabels"], made["Service"]["spec"]["selector"],
        made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        made["InferencePool"]["spec"]["selector"]["matchLabels"],
    ]  # fmt: skip
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert (
        made["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
        <= made["Service"]["metadata"]["labels"].items()
    )
    assert made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == made["Deployment"]["metadata"]["name"]
    assert made["HTTPRoute"]["spec"]["rules"][0]["backendRefs"][0]["name"] == made["InferencePool"]["metadata"]["name"]
    assert made["ConfigMap"]["data"]["profile.toml"].strip() == PROFILE.strip()
    assert "replicas" not in made["Deployment"]["spec"]  # the autoscaler's
    assert manifests("defaults")["Deployment"]["spec"]["replicas"] == 1
    to_service = manifests("keda")["HTTPRoute"]["spec"]["rules"][0]["backendRefs"]
    assert to_service == [{"name": "a-twogear", "port": 8000}]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"modell": "x"}, "modell"),
        ({"drainSeconds": "long"}, "drainSeconds"),
        ({"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
        ({"httpRoute": {"toInferencePool": True}}, "inferencePool.enabled"),
        ({"inferencePool": {"enabled": True}}, "endpointPicker.name"),
        ({"kvEvents": {"enabled": True}, "dataParallelSize": 2}, "dataParallelSize"),
        ({"autoscaling": {"kind": "hpa", "minReplicas": 5}}, "minReplicas"),
        ({"gpus": 1, "dataParallelSize": 2}, "gpus"),
        ({**NODES, "dataParallelSize": 2}, "dataParallelSize"),
        ({"nodes": 2}, "engineArgs"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values: Values, told: str) -> None:
    done = helm("template", "a", str(CHART), *_set(values))
    assert done.returncode != 0
    assert told in done.stderr


@pytest.mark.parametrize("block", [one for one in PAGE if "helm " in one.code], ids=lambda block: block.id)
def test_the_docs_name_the_chart_and_its_values(block: Block) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert "deploy/kubernetes" in block.code
    for name in re.findall(r"--set ([\w.]+)=", block.code):
        found: Any = values
        for part in name.split("."):
            found = found[part]
