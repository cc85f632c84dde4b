"""What a study finds, in a form that a report can show and a file can keep: tables, charts, examples, bars.

A study makes these; the report (training/results/) draws them and knows no study by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from training.checkpoint import sync_directory, write_json
from training.errors import DataError
from training.judges import Mean, WinRate
from training.verdicts import Bar, Controlled

FORMAT = 1


@dataclass(frozen=True)
class Value:
    """A figure and, where it has one, its 95% interval; `digits` after the point, `sign` shows a plus."""

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 1
    sign: bool = False

    def __str__(self) -> str:
        form = f"{'+' if self.sign else ''}.{self.digits}f"
        text = format(self.value, form)
        if self.low is not None and self.high is not None:
            text += f" [{format(self.low, form)}, {format(self.high, form)}]"
        return text.replace("-", "−")


Cell = str | Value


def delta(rate: WinRate | Controlled) -> Value:
    """Δ with its interval."""
    return Value(rate.delta, rate.low, rate.high, sign=True)


def mean(found: Mean, *, sign: bool = False, digits: int = 2) -> Value:
    return Value(found.mean, found.low, found.high, digits, sign)


@dataclass(frozen=True)
class Table:
    """A heading, what is to be known beside the figures, and rows of cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one chart under one name; `low` and `high` bound y, `labels` name the points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    labels: Sequence[str] | None = None


def curve(
    name: str, x: Sequence[float], found: Sequence[Mean], labels: Sequence[str] | None = None
) -> Series:
    """Means with their intervals as a series."""
    return Series(name, x, [m.mean for m in found], [m.low for m in found], [m.high for m in found], labels)


@dataclass(frozen=True)
class Chart:
    """`line` joins points; `scatter` names them; `bars` has one bar a label; `distribution` gives, in each
    series' y, values whose distribution is drawn. `zero` draws the line y = 0."""

    name: str
    title: str
    kind: Literal["line", "scatter", "bars", "distribution"]
    x_label: str
    y_label: str
    series: Sequence[Series]
    text: str = ""
    zero: bool = False
    log_x: bool = False


def bar_chart(name: str, title: str, label: str, values: Mapping[str, Value], text: str) -> Chart:
    """A chart with a bar for each value, by its name, and its interval; the smallest first."""
    order = sorted(values, key=lambda each: values[each].value)
    y = [values[each].value for each in order]
    low = [values[each].low or 0.0 for each in order]
    high = [values[each].high or 0.0 for each in order]
    series = Series(label, list(range(len(order))), y, low, high, order)
    return Chart(name, title, "bars", "", label, [series], text, zero=True)


@dataclass(frozen=True)
class Example:
    """One response before and after an improvement, with the judge's scores."""

    title: str
    prompt: str
    before: str
    after: str
    before_score: float
    after_score: float


@dataclass(frozen=True)
class Figures:
    """Everything that a study found."""

    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    examples: Sequence[Example] = ()
    bars: Sequence[Bar] = ()


@dataclass(frozen=True)
class Result:
    """A study's figures and where they come from: `settings` of the study and of its runs, `models` by seed
    (content hashes), `cost` in seconds and tokens, `command` to make them again."""

    kind: str
    name: str
    question: str
    figures: Figures
    settings: Mapping[str, Any]
    models: Mapping[str, Mapping[str, str]]
    cost: Mapping[str, float]
    command: str
    versions: Mapping[str, str]
    created: str
    format: int = FORMAT


def write_result(path: Path, result: Result) -> None:
    """Publish a result: the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write_json(temporary, asdict(result))
    temporary.replace(path)
    sync_directory(path.parent)


def read_result(path: Path) -> Result:
    """A published result.

    Raises:
        DataError: there is none, or it is of another format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); pit-train study writes it", path=path) from error
    except ValueError as error:
        raise DataError("not JSON; run its study again", path=path) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"no result of format {FORMAT}; run its study again (pit-train study)", path=path)
    try:
        return Result(**record | {"figures": _figures(record["figures"])})
    except (KeyError, TypeError) as error:
        raise DataError("written by another version; run its study again (--again)", path=path) from error


def _figures(record: dict[str, Any]) -> Figures:
    tables = [
        Table(**one | {"rows": [[_cell(cell) for cell in row] for row in one["rows"]]})
        for one in record["tables"]
    ]
    return Figures(
        tables=tables,
        charts=[Chart(**one | {"series": [Series(**s) for s in one["series"]]}) for one in record["charts"]],
        examples=[Example(**one) for one in record["examples"]],
        bars=[Bar(**one) for one in record["bars"]],
    )


def _cell(cell: Any) -> Cell:
    return Value(**cell) if isinstance(cell, dict) else str(cell)
