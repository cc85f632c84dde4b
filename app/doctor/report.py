"""One finding a line, for people and as JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console

Status = Literal["ok", "warn", "fail"]
STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do where it is not well."""

    status: Status
    subject: str
    message: str
    advice: str = ""


def ok(subject: str, message: str) -> Finding:
    return Finding("ok", subject, message)


def warn(subject: str, message: str, advice: str) -> Finding:
    return Finding("warn", subject, message, advice)


def fail(subject: str, message: str, advice: str) -> Finding:
    return Finding("fail", subject, message, advice)


def show(findings: Iterable[Finding], console: Console, as_json: bool) -> bool:
    """Print the findings as they come; whether none of them is a failure."""
    seen: list[Finding] = []
    for finding in findings:
        seen.append(finding)
        if not as_json:
            console.print(f"[{STYLES[finding.status]}]{finding.status:4}[/] ", end="")
            advice = f" → {finding.advice}" if finding.advice else ""
            line = f"{finding.subject}: {finding.message}{advice}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    counts = {status: sum(finding.status == status for finding in seen) for status in STYLES}
    healthy = not counts["fail"]
    if as_json:
        print(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in seen]}, indent=1))
    else:
        summary = f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} to mend"
        console.print(summary, highlight=False)
    return healthy
