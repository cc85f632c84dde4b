"""Write the table of docs/reliability.md from the figures that the fault tests have said (`make faults`)."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("PIT_FAULTS_DIR", ROOT / "runs/faults"))
PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- figures: made by make faults -->", "<!-- end of figures -->"
FAULTS = {
    1: "Many streams for long",
    2: "Clients that leave, in every phase",
    3: "Slow readers",
    4: "`kill -9` of an engine, and of the server",
    5: "An engine that hangs",
    6: "SIGTERM, and a rolling restart",
    7: "`kill -9` of a batch worker",
    8: "`kill -9` right after feedback; a database that fails",
    9: "A gap reward that is slow or down",
    10: "Hostile input",
    11: "The whole OpenAPI document, fuzzed",
    12: "Keys: every route, every wrong key, other tenants",
    13: "Limits on several replicas",
    14: "Canaries in logs, metrics and traces",
    15: "The real `openai` client",
    16: "Replayed idempotency keys; resumed events",
}
Found = Mapping[str, Any]


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        print(f"{PAGE.name} has no {BEGIN} … {END}", file=sys.stderr)
        return 1
    found = figures(FOLDER)
    PAGE.write_text(f"{before}{BEGIN}\n{block(found)}\n{END}{after}", encoding="utf-8")
    missed = [figure for figure in found if not figure["met"]]
    print(f"wrote {PAGE.name}: {len(found)} figures, {len(missed)} below their bar")
    return 0


def figures(folder: Path) -> list[Found]:
    """One for each row and thing measured: of several the last, or the last that missed its bar."""
    latest: dict[tuple[int, str], Found] = {}
    for path in sorted(folder.glob("row-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            figure: Found = json.loads(line)
            key = (figure["row"], figure["what"])
            if key not in latest or latest[key]["met"] or not figure["met"]:
                latest[key] = figure
    return sorted(latest.values(), key=lambda figure: int(figure["row"]))


def block(found: Sequence[Found]) -> str:
    """The text between the markers."""
    lines = [f"Measured on {machine()}.", ""]
    lines += ["| | what | measured | bar | |", "| --- | --- | --- | --- | --- |"]
    for row, name in FAULTS.items():
        lines.append(f"| **{row}** | **{name}** | | | |")
        of_row = [figure for figure in found if figure["row"] == row]
        if not of_row:
            lines.append("| | not measured in this run | | | |")
        for figure in of_row:
            short = "" if figure["full"] else " (short form)"
            cells = (figure["what"] + short, figure["measured"], figure["bar"], _verdict(figure))
            lines.append("| | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _verdict(figure: Found) -> str:
    return "met" if figure["met"] else "**missed**"


def machine() -> str:
    """Date, commit, processor, memory, system."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = _after(lines, "model name") or platform.processor() or "an unknown processor"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{datetime.now(UTC):%Y-%m-%d} at commit {commit or 'unknown'}, on {cores} cores of {cpu} with"
        f" {memory:.0f} GiB, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )


def _after(lines: Iterable[str], name: str) -> str:
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


if __name__ == "__main__":
    sys.exit(main())
