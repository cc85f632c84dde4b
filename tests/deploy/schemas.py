"""Schemas of objects that Kubernetes itself does not know: the fields that deploy/ uses, no others."""

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}


def exactly(required: Schema, optional: Schema | None = None) -> Schema:
    """An object with these fields and no others."""
    properties = required | (optional or {})
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def resource(version: str, kind: str, spec: Schema) -> Schema:
    return exactly(
        {
            "apiVersion": {"const": version},
            "kind": {"const": kind},
            "metadata": {"type": "object"},
            "spec": spec,
        }
    )


NUMBER: Schema = {"type": "string", "pattern": r"^[0-9.]+$"}
QUERY = exactly({"serverAddress": TEXT, "query": TEXT, "threshold": NUMBER}, {"activationThreshold": NUMBER})
TRIGGER = exactly({"type": {"const": "prometheus"}, "metadata": QUERY})
ENDPOINT = exactly(
    {"port": TEXT, "path": TEXT, "interval": {"type": "string", "pattern": r"^\d+[sm]$"}},
    {
        "authorization": exactly(
            {"type": {"const": "Bearer"}, "credentials": exactly({"name": TEXT, "key": TEXT})}
        )
    },
)
OURS: dict[tuple[str, str], Schema] = {
    ("keda.sh/v1alpha1", "ScaledObject"): resource(
        "keda.sh/v1alpha1",
        "ScaledObject",
        exactly(
            {"scaleTargetRef": exactly({"name": TEXT}), "minReplicaCount": COUNT, "maxReplicaCount": COUNT,
             "triggers": {"type": "array", "minItems": 1, "items": TRIGGER}},
            {"cooldownPeriod": COUNT, "pollingInterval": COUNT},
        ),
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): resource(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        exactly({"selector": {"type": "object"}, "endpoints": {"type": "array", "items": ENDPOINT}}),
    ),
}  # fmt: skip
