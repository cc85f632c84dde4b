"""deploy/ renders, is valid, and says what the application does: ports, paths, variables, options, times."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__
from app.access import need
from app.given_keys import given_keys
from app.main import create_app
from app.security import digest
from app.server import LEFT_S
from app.settings import Settings, load_settings
from tests.deploy import dockerfile
from tests.deploy.kubernetes import (
    DEPLOY,
    OVERLAYS,
    PACKAGE,
    ROOT,
    Object,
    containers,
    kubectl,
    labels_match,
    named,
    of_kind,
    pods,
    render,
)
from tests.deploy.schemas import OURS

pytestmark = pytest.mark.skipif(not kubectl(), reason=f"kubectl is missing: apt-get install {PACKAGE}")
VERSIONS = ("1.30.0", "1.37.0")
"""Oldest and newest Kubernetes that the manifests are held against."""
USER = 10001


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    """The overlays, and the one that docs/kubernetes.md shows, with both components."""
    copy = tmp_path_factory.mktemp("deploy") / "deploy"
    shutil.copytree(DEPLOY, copy)
    page = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    mine = copy / "overlays/mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(
        page.split("```yaml\n# deploy/overlays/mine")[1].split("\n", 1)[1].split("```")[0]
    )
    return {name: render(copy / "overlays" / name) for name in (*OVERLAYS, "mine")}


@pytest.fixture(params=[*OVERLAYS, "mine"])
def objects(request: pytest.FixtureRequest, everything: dict[str, list[Object]]) -> list[Object]:
    return everything[request.param]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(objects: list[Object], version: str) -> None:
    import jsonschema
    import kubernetes_validate

    for one in objects:
        if own := OURS.get((one["apiVersion"], one["kind"])):
            jsonschema.validate(one, own)
        else:
            kubernetes_validate.validate(one, version, strict=True)


def test_everything_is_in_the_namespace_and_labelled(objects: list[Object]) -> None:
    keys = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(keys) == len(set(keys))
    for one in objects:
        if one["kind"] != "Namespace":
            assert one["metadata"]["namespace"] == "pit"
        assert one["metadata"]["labels"]["app.kubernetes.io/name"] == "pit-serve"
    for _, template in pods(objects):
        labels = template["metadata"]["labels"]
        assert labels["app.kubernetes.io/version"] == __version__ and "app.kubernetes.io/component" in labels


def test_pods_are_restricted(objects: list[Object]) -> None:
    """The restricted profile of Kubernetes, which the namespace enforces, and a read-only root beside it."""
    labels = named(objects, "Namespace", "pit")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for where, template, container in containers(objects):
        pod, own = template["spec"]["securityContext"], container["securityContext"]
        assert pod["runAsNonRoot"] and pod["runAsUser"] == USER, where
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, where
        assert template["spec"]["automountServiceAccountToken"] is False
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"], where
        kinds = {kind for volume in template["spec"]["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"secret", "emptyDir", "persistentVolumeClaim"}, where


def test_images_are_those_of_the_dockerfile(objects: list[Object]) -> None:
    stages = dockerfile.stages(dockerfile.DOCKERFILE.read_text(encoding="utf-8"))
    for where, _, container in containers(objects):
        name, _, tag = container["image"].partition(":")
        target = name.removeprefix("pit-serve-")
        assert target in stages and tag == __version__, where
        user = dockerfile.last(stages, target, "USER")
        assert user and user.rest == f"{USER}:{USER}"


def test_volumes_are_there_and_cover_what_is_written(objects: list[Object]) -> None:
    claims = {one["metadata"]["name"] for one in of_kind(objects, "PersistentVolumeClaim")}
    stages = dockerfile.stages(dockerfile.DOCKERFILE.read_text(encoding="utf-8"))
    volume = dockerfile.last(stages, "gateway", "VOLUME")
    assert volume
    for where, template, container in containers(objects):
        volumes = {one["name"]: one for one in template["spec"]["volumes"]}
        mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
        assert {one["name"] for one in mounts.values()} <= set(volumes), where
        written = {path for path, one in mounts.items() if not one.get("readOnly")}
        wanted = {"/tmp"} if where.startswith("Job/") else set(volume.words())
        assert wanted <= written, where
        for one in volumes.values():
            assert len(one) == 2, f"{where}: {one} has two sources"
            if claim := one.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims, where
        if any("nvidia.com/gpu" in container["resources"][kind] for kind in ("requests", "limits")):
            assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory", where
            state = volumes[mounts["/var/lib/pit"]["name"]]
            assert "persistentVolumeClaim" in state or state["emptyDir"]["sizeLimit"], where


def servers(objects: list[Object]) -> list[tuple[Object, Object]]:
    return [
        (template, one) for _, template, one in containers(objects) if one.get("args", [""])[0] == "serve"
    ]


def settings_of(container: Object, monkeypatch: pytest.MonkeyPatch, keys: Path) -> Settings:
    """What the server would read: values that come from a secret are made up."""
    made_up = {"PIT_DATABASE": "postgresql://pit@db/pit", "PIT_LIMITS_URL": "redis://redis:6379"}
    for variable in container["env"]:
        name = variable["name"]
        assert name.startswith("PIT_") and name[4:].lower() in Settings.model_fields, name
        given = variable.get("value")
        assert (given is None) == ("valueFrom" in variable)
        monkeypatch.setenv(name, made_up.get(name, "key") if given is None else given)
    monkeypatch.setenv("PIT_API_KEYS_FILE", str(keys))
    return load_settings()


def test_servers_are_given_settings_that_hold(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Variables, port and times against app/settings.py; the addresses of engines against the Services."""
    for template, container in servers(objects):
        with monkeypatch.context() as patch:
            settings = settings_of(container, patch, tmp_path / "keys")
        assert container["ports"] == [{"name": "http", "containerPort": settings.port}]
        before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        needed = before + settings.shutdown_grace_s + 2 * LEFT_S
        assert template["spec"]["terminationGracePeriodSeconds"] > needed
        mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
        for directory in (settings.policy, settings.improver, settings.gap_reward):
            assert directory is None or str(directory.parent) in mounts
        urls = {*settings.policy_url, *settings.improver_url, *settings.gap_reward_url}
        for url in urls:
            host, _, port = url.removeprefix("http://").partition(":")
            assert int(port) in [one["port"] for one in named(objects, "Service", host)["spec"]["ports"]], url


def test_probes_ask_what_the_server_answers_without_a_key(objects: list[Object]) -> None:
    paths = create_app(Settings(policy=Path("."))).openapi()["paths"]
    for _, container in servers(objects):
        probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
        assert probes["startup"]["path"] == probes["liveness"]["path"] == "/health/live"
        assert probes["readiness"]["path"] == "/health/ready"
        for probe in probes.values():
            assert "get" in paths[probe["path"]] and probe["port"] == "http"
            assert need(probe["path"]) == "open", probe


def test_commands_exist(objects: list[Object]) -> None:
    import typer.main

    from app.cli import app as cli

    command: Any = typer.main.get_command(cli)
    for where, _, container in containers(objects):
        words = container.get("args", []) if "command" not in container else []
        for found in (words and [command]) or []:
            for word in words:
                assert word in found.commands, f"{where}: pit {' '.join(words)}"
                found = found.commands[word]


def test_services_and_budgets_find_their_pods(objects: list[Object]) -> None:
    templates = {name: template for name, template in pods(objects)}
    for service in of_kind(objects, "Service"):
        found = [
            t
            for t in templates.values()
            if labels_match({"matchLabels": service["spec"]["selector"]}, t["metadata"]["labels"])
        ]
        assert len(found) == 1, service["metadata"]["name"]
        names = {port["name"] for one in found[0]["spec"]["containers"] for port in one["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for budget in of_kind(objects, "PodDisruptionBudget"):
        assert [
            t for t in templates.values() if labels_match(budget["spec"]["selector"], t["metadata"]["labels"])
        ]
    for scaler in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        target = named(objects, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        if scaler["kind"] == "HorizontalPodAutoscaler":
            assert "replicas" not in target["spec"], "a replica count would fight the autoscaler"
    for monitor in of_kind(objects, "ServiceMonitor"):
        services = [
            s
            for s in of_kind(objects, "Service")
            if labels_match(monitor["spec"]["selector"], s["metadata"]["labels"])
        ]
        (endpoint,) = monitor["spec"]["endpoints"]
        assert [port["name"] for s in services for port in s["spec"]["ports"]] == [endpoint["port"]]
        assert need(endpoint["path"]) == "metrics"


def test_keda_takes_the_autoscalers_place(everything: dict[str, list[Object]]) -> None:
    assert of_kind(everything["pool"], "HorizontalPodAutoscaler")
    assert not of_kind(everything["mine"], "HorizontalPodAutoscaler")
    assert {one["metadata"]["name"] for one in of_kind(everything["mine"], "ScaledObject")} == {
        "pit-server", "pit-improver", "pit-gap-reward",
    }  # fmt: skip


def test_secrets_are_named_and_the_page_says_how_to_make_them(objects: list[Object]) -> None:
    page = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    assert not of_kind(objects, "Secret")
    wanted = set()
    for _, _, container in containers(objects):
        refs = [variable.get("valueFrom", {}).get("secretKeyRef") for variable in container.get("env", [])]
        wanted |= {(ref["name"], ref["key"]) for ref in refs if ref}
    for _, template in pods(objects):
        wanted |= {(v["secret"]["secretName"], "keys") for v in template["spec"]["volumes"] if "secret" in v}
    for monitor in of_kind(objects, "ServiceMonitor"):
        ref = monitor["spec"]["endpoints"][0]["authorization"]["credentials"]
        wanted.add((ref["name"], ref["key"]))
    made = set(re.findall(r"create secret generic (\S+) --from-(?:file|literal)=(\w+)=", page))
    assert wanted and wanted <= made


def test_the_keys_of_the_page_are_keys(tmp_path: Path) -> None:
    """Its lines that write the file `keys` and take the one for Prometheus from it."""
    page = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    (write,) = re.findall(r"^printf 'ci .*$", page, re.MULTILINE)
    (take,) = re.findall(r"pit-metrics --from-literal=key=\"(.*)\"$", page, re.MULTILINE)
    for _ in range(2):
        write = write.replace("openssl rand -hex 32", f"echo {os.urandom(32).hex()}", 1)
    script = f'{write}\nprintf %s "{take}"'
    taken = subprocess.run(
        ["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    ci, prometheus = given_keys(Settings(api_keys_file=tmp_path / "keys"))
    assert sorted(ci.identity.scopes) == ["chat", "improve"]
    assert sorted(prometheus.identity.scopes) == ["metrics"] and prometheus.fits(digest(taken.encode()))


def flows(objects: list[Object], source: str, target: str, port: int) -> bool:
    """Whether the policies let a pod of component `source` talk to one of `target`; "" is outside the
    namespace."""
    policies = [one["spec"] for one in of_kind(objects, "NetworkPolicy")]
    component = "app.kubernetes.io/component"

    def takes(peer: Object, other: str) -> bool:
        return bool(other) and "podSelector" in peer and labels_match(peer["podSelector"], {component: other})

    def open_way(kind: str, own: str, other: str) -> bool:
        if not own:
            return True
        mine = [p for p in policies if kind.title() in p["policyTypes"]]
        mine = [p for p in mine if labels_match(p["podSelector"], {component: own})]
        for rule in (rule for policy in mine for rule in policy.get(kind, [])):
            peers = rule.get("to" if kind == "egress" else "from", [])
            ports = [8000 if one["port"] == "http" else one["port"] for one in rule["ports"]]
            if port in ports and (not peers or any(takes(peer, other) for peer in peers)):
                return True
        return not mine

    return open_way("egress", source, target) and open_way("ingress", target, source)


def test_the_network_is_closed_but_for_what_is_needed(everything: dict[str, list[Object]]) -> None:
    parts = ["", "server", "migration", "improver", "gap-reward", "database", "limits"]
    allowed = {(a, b, port) for a in parts for b in parts for port in (8000, 5432, 6379)
               if a != b and flows(everything["pool"], a, b, port)}  # fmt: skip
    assert allowed == {
        ("", "server", 8000), ("server", "improver", 8000), ("server", "gap-reward", 8000),
        ("server", "database", 5432), ("migration", "database", 5432), ("server", "limits", 6379),
    }  # fmt: skip
    assert flows(everything["single-gpu"], "", "server", 8000)
    assert not flows(everything["single-gpu"], "server", "", 443)


def engines(objects: list[Object]) -> list[tuple[Object, Object]]:
    return [
        (template, one)
        for _, template, one in containers(objects)
        if "vllm" in " ".join(one.get("command", []))
    ]


def test_engines_drain_and_are_named_as_the_servers_ask(everything: dict[str, list[Object]]) -> None:
    found, names = engines(everything["pool"]), set()
    assert len(found) == 2
    for template, container in found:
        options = dict(one.removeprefix("--").split("=", 1) for one in container["args"] if "=" in one)
        before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert template["spec"]["terminationGracePeriodSeconds"] > before + int(options["shutdown-timeout"])
        assert int(options["port"]) == container["ports"][0]["containerPort"]
        assert options["model"] == f"/models/{options['served-model-name']}"
        names.add(options["served-model-name"])
    queries = str([one["spec"]["triggers"] for one in of_kind(everything["mine"], "ScaledObject")])
    assert set(re.findall(r'model="(\w+)"', queries)) == names


@pytest.mark.engine
def test_vllm_has_the_options_of_the_engines(everything: dict[str, list[Object]]) -> None:
    """Against the parser of the installed version; also that its server has the path that the probes ask."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    for _, container in engines(everything["pool"]):
        parser.parse_args(container["args"])
    page = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    (adapters,) = re.findall(r"`(--model=/models/base [^`]*)`", page)
    assert parser.parse_args(adapters.split()).lora_modules


def test_the_loader_is_valid_and_sees_the_models(everything: dict[str, list[Object]]) -> None:
    import kubernetes_validate

    pod = yaml.safe_load((DEPLOY / "loader.yaml").read_text())
    kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)
    assert pod["spec"]["securityContext"]["runAsUser"] == USER, "servers read what it writes"
    (volume,) = pod["spec"]["volumes"]
    for objects in everything.values():
        assert named(objects, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])


def test_the_rules_as_the_operator_takes_them() -> None:
    """The command of docs/kubernetes.md, without its end."""
    page = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    command = page[page.index("{ printf 'apiVersion: monitoring") : page.index("| kubectl -n pit apply -f -")]
    done = subprocess.run(["sh", "-ec", command], cwd=ROOT, capture_output=True, text=True, check=True)
    found = yaml.safe_load(done.stdout)
    files = [
        yaml.safe_load((DEPLOY / f"prometheus/{name}.yaml").read_text()) for name in ("recording", "alerts")
    ]
    assert found["kind"] == "PrometheusRule" and found["metadata"] == {"name": "pit"}
    assert found["spec"]["groups"] == [group for file in files for group in file["groups"]]


def test_a_kustomization_of_every_directory_renders() -> None:
    """Also the dashboards': a file that no kustomization names is of no use."""
    for file in DEPLOY.rglob("kustomization.yaml"):
        if yaml.safe_load(file.read_text())["kind"] == "Kustomization":
            assert render(file.parent)
