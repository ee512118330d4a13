"""The parts of custom resources' schemas that the chart uses, closed: another field is a mistake.

Kubernetes itself has no schemas of them. Written by the APIs' references: Gateway API 1.4 (HTTPRoute), Gateway API
Inference Extension 1 (InferencePool), KEDA 2 (ScaledObject), the Prometheus Operator (ServiceMonitor), LeaderWorkerSet
0.6. The pods in a LeaderWorkerSet are any objects here: Kubernetes's own schema is for them.
"""

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def _kind(version: str, kind: str, spec: Schema) -> Schema:
    metadata = _object({"name": TEXT, "labels": TEXTS})
    return _object({"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": metadata, "spec": spec})


_DURATION: Schema = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
_LABELS = _object({"matchLabels": TEXTS})
_POLICIES = _list(_object({"type": {"enum": ["Pods", "Percent"]}, "value": COUNT, "periodSeconds": COUNT}))
_RULES = _object({"stabilizationWindowSeconds": COUNT, "policies": _POLICIES})
_BACKEND = _object({"name": TEXT}, {"group": TEXT, "kind": TEXT, "port": PORT})
_PATH = _object({"path": _object({"type": {"enum": ["Exact", "PathPrefix"]}, "value": {"pattern": "^/"}})})
_RULE = _object(
    {"backendRefs": _list(_BACKEND)},
    {"matches": _list(_PATH), "timeouts": _object({"request": _DURATION, "backendRequest": _DURATION})},
)
_POD = _object({"metadata": {"type": "object"}, "spec": {"type": "object"}})
_PARENT = _object({"name": TEXT}, {"namespace": TEXT, "sectionName": TEXT})

SCHEMAS: dict[str, Schema] = {
    "HTTPRoute": _kind(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        _object({"parentRefs": _list(_PARENT), "rules": _list(_RULE)}, {"hostnames": _list(TEXT)}),
    ),
    "LeaderWorkerSet": _kind(
        "leaderworkerset.x-k8s.io/v1",
        "LeaderWorkerSet",
        _object(
            {
                "leaderWorkerTemplate": _object(
                    {"workerTemplate": _POD, "size": {"type": "integer", "minimum": 1}},
                    {
                        "leaderTemplate": _POD,
                        "restartPolicy": {"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
                    },
                )
            },
            {
                "replicas": COUNT,
                "startupPolicy": {"enum": ["LeaderCreated", "LeaderReady"]},
                "rolloutStrategy": _object(
                    {"type": {"const": "RollingUpdate"}},
                    {"rollingUpdateConfiguration": _object({}, {"maxUnavailable": COUNT, "maxSurge": COUNT})},
                ),
            },
        ),
    ),
    "InferencePool": _kind(
        "inference.networking.k8s.io/v1",
        "InferencePool",
        _object(
            {
                "selector": _LABELS,
                "targetPorts": _list(_object({"number": PORT})),
                "endpointPickerRef": _object(
                    {"name": TEXT, "port": _object({"number": PORT})},
                    {"failureMode": {"enum": ["FailOpen", "FailClose"]}},
                ),
            }
        ),
    ),
    "ScaledObject": _kind(
        "keda.sh/v1alpha1",
        "ScaledObject",
        _object(
            {
                "scaleTargetRef": _object({"name": TEXT}, {"apiVersion": TEXT, "kind": TEXT}),
                "triggers": _list(_object({"type": TEXT, "metadata": TEXTS}, {"metricType": TEXT})),
            },
            {
                "minReplicaCount": COUNT,
                "maxReplicaCount": COUNT,
                "pollingInterval": COUNT,
                "fallback": _object(
                    {"failureThreshold": COUNT, "replicas": COUNT}, {"behavior": {"const": "currentReplicasIfHigher"}}
                ),
                "advanced": _object(
                    {
                        "horizontalPodAutoscalerConfig": _object(
                            {"behavior": _object({"scaleUp": _RULES, "scaleDown": _RULES})}
                        )
                    }
                ),
            },
        ),
    ),
    "ServiceMonitor": _kind(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        _object(
            {
                "selector": _LABELS,
                "endpoints": _list(
                    _object(
                        {"port": TEXT, "path": TEXT, "interval": _DURATION},
                        {"authorization": _object({"credentials": _object({"name": TEXT, "key": TEXT})})},
                    )
                ),
            }
        ),
    ),
}
