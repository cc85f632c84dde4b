"""What deploy/ says, rendered: the objects of each overlay, and the containers in them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("single-gpu", "pool", "cpu-demo")
PACKAGE = "kubernetes-client"
Object = dict[str, Any]


def kubectl() -> str | None:
    return shutil.which("kubectl")


def render(directory: Path) -> list[Object]:
    """The objects that `kubectl apply -k directory` would send."""
    program = kubectl()
    assert program
    done = subprocess.run([program, "kustomize", str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    return next(one for one in of_kind(objects, kind) if one["metadata"]["name"] == name)


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Kind and name of what makes pods, and the template."""
    for one in of_kind(objects, "Deployment", "StatefulSet", "Job"):
        yield f"{one['kind']}/{one['metadata']['name']}", one["spec"]["template"]


def containers(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Where it stands, the pod's template, the container."""
    for where, template in pods(objects):
        for container in template["spec"].get("initContainers", []) + template["spec"]["containers"]:
            yield f"{where}/{container['name']}", template, container


def labels_match(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a selector (matchLabels, matchExpressions with In) takes these labels."""
    equal = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    return equal and all(
        one["operator"] == "In" and labels.get(one["key"]) in one["values"]
        for one in selector.get("matchExpressions", [])
    )
