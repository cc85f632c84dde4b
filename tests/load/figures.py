"""Figures of interleaved rounds: median and quartiles, the bars they are held against, a file and a table."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of the rounds."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def spread(values: Sequence[float]) -> Spread:
    """Of one round or more."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], tuple(values))
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high, tuple(values))


def ratios(ours: Spread, theirs: Spread) -> Spread:
    """Round by round: what the machine did in a round, it did to both."""
    return spread([a / b for a, b in zip(ours.rounds, theirs.rounds, strict=True)])


@dataclass(frozen=True)
class Bar:
    """A figure and what it must reach."""

    name: str
    figure: float
    wanted: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.figure >= self.wanted if self.at_least else self.figure <= self.wanted

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "PASS" if self.met else "MISS"
        return f"{verdict}  {self.name}: {self.figure:.3g} (wanted {sign} {self.wanted:g})"


@dataclass
class Result:
    """What one measurement found. `rows` are a table: a name, and its cells by column."""

    name: str
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self, console: Console) -> None:
        columns = list(dict.fromkeys(column for cells in self.rows.values() for column in cells))
        table = Table("", *columns, box=None, pad_edge=False, title=self.name, title_justify="left")
        for name, cells in self.rows.items():
            table.add_row(name, *(_cell(cells.get(column)) for column in columns))
        console.print(table)
        for line in [*self.notes, *map(str, self.bars)]:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.json"
        content = asdict(self) | {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        for bar, one in zip(content["bars"], self.bars, strict=True):
            bar["met"] = one.met
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        return path


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "–" if value is None else str(value)
