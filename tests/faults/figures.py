"""What the fault tests measure: each says its figures, and docs/reliability.md is generated from a run's.

`make test` runs a short form of every row of the table, `make faults` (PIT_FAULTS=full) the full counts.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FULL = os.environ.get("PIT_FAULTS") == "full"
FOLDER = Path(os.environ.get("PIT_FAULTS_DIR", "runs/faults"))


def count(full: int, short: int) -> int:
    """How often to do something: `full` under `make faults`, `short` under `make test`."""
    return full if FULL else short


@dataclass(frozen=True)
class Figure:
    """One measurement. `row` is the row's number in the table of faults; `measured` and `bar` are shown as
    they are, as "100 of 100, slowest 0.11 s" and "100 of 100 within 1 s"."""

    row: int
    what: str
    measured: str
    bar: str
    met: bool


def say(figure: Figure) -> None:
    """Print a figure, keep it for the report, and fail the test where its bar is not met."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(figure) | {"full": FULL})
    with (FOLDER / f"row-{figure.row:02d}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(f"fault {figure.row}: {figure.what}: {figure.measured} (bar: {figure.bar})")
    assert figure.met, f"{figure.what}: {figure.measured}, and the bar is: {figure.bar}"
