"""A real Prometheus (Debian's package) that scrapes one server twice a second, with the project's rules."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
PACKAGE = "prometheus"
DEADLINE_S = 120.0
Query = dict[str, Any]


def programs() -> bool:
    return bool(shutil.which("prometheus") and shutil.which("promtool"))


@dataclass(frozen=True)
class Prometheus:
    client: httpx.Client

    def query(self, expression: str) -> list[Query]:
        """The samples of an instant query. Raises `AssertionError` with Prometheus' words for one that is
        wrong."""
        answer = self.client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        found: list[Query] = answer["data"]["result"]
        return found

    def wait(self, expression: str) -> list[Query]:
        """The samples, once there are some that are numbers."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if found := [one for one in self.query(expression) if one["value"][1] != "NaN"]:
                return found
            time.sleep(0.3)
        raise AssertionError(f"no data: {expression}")


@contextmanager
def scraping(directory: Path, address: str, key: str) -> Iterator[Prometheus]:
    """Prometheus, ready; `address` is HOST:PORT of a server whose /metrics asks for `key`."""
    rules = directory / "rules"
    rules.mkdir()
    for file in RULES.glob("*.yaml"):
        if not file.name.endswith(".test.yaml"):
            # A group of an interval of its own is first evaluated somewhere in it: minutes.
            (rules / file.name).write_text(re.sub(r"\n    interval: \w+", "", file.read_text()))
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [f"{rules}/*.yaml"],
        "scrape_configs": [
            {
                "job_name": "pit",
                "authorization": {"credentials": key},
                "static_configs": [{"targets": [address]}],
            }
        ],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    listen = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={directory}/prometheus.yaml",
        f"--storage.tsdb.path={directory}/data",
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={listen}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{listen}", timeout=30) as client:
            deadline = time.monotonic() + DEADLINE_S
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    if client.get("/-/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            assert process.poll() is None, (directory / "prometheus.log").read_text()[-2000:]
            yield Prometheus(client)
    finally:
        process.terminate()
        process.wait(30)
