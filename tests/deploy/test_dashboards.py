"""Dashboards, rules and alerts ask for what the server has: every query against a real scrape of it."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.telemetry import Telemetry
from scripts import dashboards
from scripts.panels import DASHBOARDS
from tests.deploy.prometheus import DEADLINE_S, GRAFANA, PACKAGE, ROOT, RULES, Prometheus, programs, scraping
from tests.faults.server import fake_server

needs_prometheus = pytest.mark.skipif(
    not programs(), reason=f"prometheus and promtool are missing: apt-get install {PACKAGE}"
)
ALERTS = yaml.safe_load((RULES / "alerts.yaml").read_text())
RECORDED = yaml.safe_load((RULES / "recording.yaml").read_text())
KEY = "7d1b5ae09c3f42868e5b1f7740c2d9a6"
NEED_AN_EVENT = {
    "pit_model_errors_total": "an engine that fails",
    "pit_disconnects_total": "a client that leaves",
    "vllm:": "vLLM, which has no fake",
}
"""Queries of these may find nothing, and what they need."""


def panels() -> list[tuple[str, str]]:
    """Title and query of every panel, Grafana's variables filled in."""
    found = []
    for file in sorted(GRAFANA.glob("*.json")):
        board = json.loads(file.read_text(encoding="utf-8"))
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"].replace("$job", ".*").replace("$__rate_interval", "30s")
                assert "$" not in query, query
                found.append((f"{board['title']}: {panel['title']}", query))
    return found


def rules(groups: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in groups["groups"] for rule in group["rules"]]


def scaling() -> list[tuple[str, str]]:
    """The queries of KEDA's ScaledObjects; its engines' models are not those of the fakes."""
    file = ROOT / "deploy/components/keda/scaled-objects.yaml"
    return [
        (f"KEDA {one['metadata']['name']}", re.sub(r'\{model="\w+"\}', "", trigger["metadata"]["query"]))
        for one in yaml.safe_load_all(file.read_text())
        for trigger in one["spec"]["triggers"]
    ]


def queries() -> list[tuple[str, str]]:
    recorded = [(rule["record"], rule["expr"]) for rule in rules(RECORDED)]
    alerts = [(rule["alert"], rule["expr"]) for rule in rules(ALERTS)]
    return [*panels(), *recorded, *alerts, *scaling()]


def test_the_dashboards_are_up_to_date() -> None:
    for uid in DASHBOARDS:
        file = GRAFANA / f"{uid}.json"
        assert file.read_text(encoding="utf-8") == dashboards.dashboard(uid), "run make docs"


def test_panels_do_not_overlap() -> None:
    for uid in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(dashboards.dashboard(uid))["panels"]:
            place = panel["gridPos"]
            xs, ys = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            cells = {(x, y) for x in xs for y in ys}
            assert max(xs) < 24 and not cells & taken, panel["title"]
            taken |= cells


def test_every_metric_and_label_is_the_servers() -> None:
    """Also of alerts and scalers, which may find nothing while all is well."""
    known: dict[str, set[str]] = {}
    for collector in Telemetry().registry._collector_to_names:
        for family in collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            ends = ["_bucket", "_count"] if family.type == "histogram" else [""]
            if family.type == "histogram" and collector._upper_bounds[0] >= 0:  # type: ignore[attr-defined]
                ends.append("_sum")  # a sum that can fall is no counter, and not shown
            labels = {*getattr(collector, "_labelnames", ()), "job", "instance"}
            known |= {name + end: labels | ({"le"} if end == "_bucket" else set()) for end in ends}
    used = set()
    for where, query in queries():
        there = {"job"}
        for name, matchers in re.findall(r"(?<![\w:])((?:pit|process)_\w+)(\{[^}]*\})?", query):
            assert name in known, f"{where}: {name}"
            assert set(re.findall(r"(\w+)(?:=|!)", matchers)) <= known[name], f"{where}: {matchers}"
            used.add(name)
            there |= known[name]
        by = {
            label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", query) for label in labels.split(",")
        }
        assert by <= there or "vllm:" in query, f"{where}: by {by - there}"
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in used}
    there = {re.sub("_(bucket|sum|count)$", "", name) for name in known if name.startswith("pit_")}
    assert not there - shown, "no panel, rule or alert shows them"


def test_runbooks_are_there_for_every_alert() -> None:
    for rule in rules(ALERTS):
        page, anchor = rule["annotations"]["runbook_url"].split("#")
        heads = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor == rule["alert"].lower() in [head.lower() for head in heads], rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")


@needs_prometheus
def test_promtool_accepts_rules_and_their_tests() -> None:
    """Each alert has a case in which it fires."""
    files = [str(file) for file in sorted(RULES.glob("*.yaml")) if not file.name.endswith(".test.yaml")]
    tests = [str(file) for file in sorted(RULES.glob("*.test.yaml"))]
    for command in (["promtool", "check", "rules", *files], ["promtool", "test", "rules", *tests]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    text = "".join(Path(file).read_text() for file in tests)
    for rule in rules(ALERTS):
        assert re.search(rf'alertname="?{rule["alert"]}"|alertname: {rule["alert"]}\b', text), rule["alert"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A server of fakes that was asked for everything it does, before the first scrape and again after it."""
    directory = tmp_path_factory.mktemp("live")
    settings: dict[str, Any] = {
        "api_keys": f"all {KEY} admin improve chat batch feedback metrics",
        "require_keys": "always",
        "tokens_per_minute": 900_000,
        "max_concurrency": 2,
    }
    with fake_server(directory, token_ms=1, tokens=5, **settings) as server:
        address = server.url.removeprefix("http://")
        asyncio.run(use(server.url))
        with scraping(directory, address, KEY) as prometheus:
            prometheus.wait("pit_ready == 1")
            asyncio.run(use(server.url))
            prometheus.wait("sum(increase(pit_feedback_preferred_total[30s])) > 0")
            prometheus.wait("sum(increase(pit_batches_total[30s])) > 0")
            yield prometheus


async def use(url: str) -> None:
    """One of everything that is counted: runs of every strategy, streams, batches, feedback, refusals."""
    chat = [{"role": "user", "content": "What is the price ?"}]
    run = {"messages": chat, "reference": "no", "max_iterations": 2}
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        assert (await client.post("/v1/improve", json=run, headers={"authorization": ""})).status_code == 401
        asked: list[tuple[str, dict[str, Any], int]] = [
            ("/v1/improve", run, 200),
            ("/v1/improve", {**run, "strategy": "self_refine"}, 200),
            ("/v1/improve", {"messages": chat, "strategy": "best_of_n", "candidates": 2}, 200),
            ("/v1/improve", {**run, "stream": True}, 200),
            ("/v1/chat/completions", {"model": "policy", "messages": chat}, 200),
            ("/v1/completions", {"model": "policy", "prompt": "The lamp"}, 200),
            ("/v1/score", {"messages": chat, "baseline": "no", "candidate": "yes"}, 200),
            ("/v1/improve", {**run, "max_tokens": 800_000}, 400),
        ]
        answers = await asyncio.gather(*(client.post(path, json=body) for path, body, _ in asked))
        for (path, body, status), answer in zip(asked, answers, strict=True):
            assert answer.status_code == status, (path, body, answer.text)
        said = {
            "type": "comparison",
            "run": answers[0].json()["id"],
            "preferred": "response",
            "other": "reference",
        }
        assert (await client.post("/v1/feedback", json=said)).status_code == 201
        key = {"idempotency-key": f"k{time.time_ns()}"}
        assert (await client.post("/v1/improve", json=run, headers=key)).status_code == 200
        line = {"custom_id": "1", "method": "POST", "url": "/v1/improve", "body": run}
        file = {"file": ("input.jsonl", json.dumps(line).encode())}
        uploaded = (await client.post("/v1/files", data={"purpose": "batch"}, files=file)).json()
        body = {"input_file_id": uploaded["id"], "endpoint": "/v1/improve", "completion_window": "24h"}
        assert (await client.post("/v1/batches", json=body)).status_code == 200


@needs_prometheus
def test_every_query_finds_data(live: Prometheus) -> None:
    asked = [*panels(), *((rule["record"], rule["expr"]) for rule in rules(RECORDED)), *scaling()]
    empty = []
    for where, query in asked:
        if any(name in query for name in NEED_AN_EVENT):
            live.query(query)
        else:
            empty.append((where, query))
    # A scrape that comes late makes series stale for a moment: what found nothing is asked again.
    deadline = time.monotonic() + DEADLINE_S / 2
    while empty and time.monotonic() < deadline:
        empty = [(where, query) for where, query in empty if not live.query(query)]
        time.sleep(0.3 if empty else 0)
    assert not empty, "\n".join(f"{where}: {query}" for where, query in empty)


@needs_prometheus
def test_alerts_can_be_asked_and_none_fires(live: Prometheus) -> None:
    for rule in rules(ALERTS):
        live.query(rule["expr"])
    assert live.query('ALERTS{alertstate="firing"}') == []


def test_vllms_metrics_are_the_installed_versions() -> None:
    """The names as vLLM's source has them: importing it takes ten seconds."""
    import importlib.util

    found = importlib.util.find_spec("vllm")
    if not found or not found.origin:
        pytest.skip("vllm is not installed")
    source = (Path(found.origin).parent / "v1/metrics/loggers.py").read_text()
    names = {name.removesuffix("_total") for _, query in panels() for name in re.findall(r"vllm:\w+", query)}
    assert names and all(f'name="{name}"' in source for name in names)
