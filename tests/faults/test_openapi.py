"""Row 11: schemathesis over the whole OpenAPI document, against the real server process over fakes. It finds
every operation by itself, those of tomorrow too."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.main import create_app
from app.settings import Settings
from tests.faults.figures import FULL, Figure, count, say
from tests.faults.server import fake_server

HERE = Path(__file__).resolve().parent
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "unsupported_method",
    "allow_header_conformance",
)  # fmt: skip
"""Not negative_data_rejection: as vLLM's server does, numbers are taken from "1" and from true, too."""
SEED = 7


@pytest.mark.slow
def test_every_operation_keeps_its_schema(tmp_path: Path) -> None:
    """By one worker: with two, schemathesis itself fails now and then ("depth mismatch"), and what it sends
    differs from run to run."""
    report = tmp_path / "report.json"
    with fake_server(tmp_path, token_ms=0, tokens=8, longest=40) as server:
        command = [
            str(Path(sys.executable).parent / "st"), "--config-file", str(HERE / "schemathesis.toml"), "run",
            f"{server.url}/openapi.json", "--checks", ",".join(CHECKS), "--seed", str(SEED),
            "--max-examples", str(count(200, 10)), "--workers", "1", "--continue-on-failure",
            "--max-response-time", "15", "--suppress-health-check", "all", "--request-timeout", "20",
            "--report", "json", "--report-json-path", str(report),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    if done.returncode:
        print(done.stdout.partition("= FAILURES =")[2][:20_000], done.stdout[-2000:])
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    kinds = {failure["type"]: failure["operations"] for failure in found["failures"]}
    operations, cases = found["operations"], found["test_cases"]
    say(
        Figure(
            11,
            "schemathesis over every operation"
            + (", examples, coverage, fuzzing and stateful" if FULL else ""),
            f"{cases['generated']} requests to {operations['tested']} of {operations['total']} operations:"
            f" {cases['unique_failures']} failures" + (f" {kinds}" if kinds else ""),
            "0 server errors, 0 answers beside the schema",
            done.returncode == 0 and not found["errors"] and operations["tested"] == operations["total"] > 10,
        )
    )


def test_every_operation_documents_the_form_of_its_errors() -> None:
    document = create_app(Settings(database="none")).openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            said = operation["responses"].keys()
            wanted = {"400", "401", "404", "413", "429", "500", "503", "4XX", "5XX"}
            assert wanted <= said, (path, method)
            assert "422" not in said, "the framework's own form of error"
