"""Draws a study's charts with matplotlib: as SVG for the page, whose text takes the page's colour, and as PNG
on white for Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from training.errors import ConfigError
from training.studies.figures import Chart, Series

# Seven hues that keep apart on white and on near-black, also for most colour-blind readers (after Okabe-Ito).
COLOURS = ("#0a84c8", "#e07b00", "#149c6e", "#c8569a", "#8a6fd1", "#b08a00", "#d14b4b")
MARKERS = "osD^vPX"
HUES = {"PIT, ungated": 1, "PIT": 0, "Self-Refine": 2, "best-of": 3, "Original": 4}
"""The same system has the same colour in every chart; by how its name begins."""
INK = "#123456"
"""Stands for the page's text colour in a drawing, and is replaced by it."""


@cache
def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("the report needs matplotlib: pip install 'pit-serve[report]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def svg(chart: Chart, name: str) -> str:
    """An <svg> element: transparent, text in `currentColor`. `name` is its own on the page it stands in."""
    plt = _pyplot()
    with plt.rc_context({**_style(INK), "svg.fonttype": "none", "svg.hashsalt": name}):
        figure = _draw(plt, chart, INK)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # Names inside an SVG are the whole page's when it is inlined.
    text = text.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-")
    text = text.replace('href="#', f'href="#{name}-')
    label = chart.title.replace("&", "and").replace('"', "'")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def png(chart: Chart) -> bytes:
    """The same on white, for readers of Markdown in any theme."""
    plt = _pyplot()
    with plt.rc_context(_style("#222222")):
        figure = _draw(plt, chart, "#222222")
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120, facecolor="white")
        plt.close(figure)
    return stream.getvalue()


def _style(ink: str) -> dict[str, Any]:
    return {
        "font.size": 10, "font.family": "sans-serif", "text.color": ink, "axes.labelcolor": ink,
        "axes.edgecolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.spines.top": False,
        "axes.spines.right": False, "axes.titlesize": 11, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlepad": 12, "legend.frameon": False, "lines.linewidth": 1.8,
        "figure.constrained_layout.use": True,
    }  # fmt: skip


def _draw(plt: Any, chart: Chart, ink: str) -> Any:
    height = 0.42 * len(chart.series[0].y) + 1.3 if chart.kind == "bars" else 3.9
    figure, axes = plt.subplots(figsize=(7.2, height))
    {"line": _lines, "scatter": _scatter, "bars": _bars, "distribution": _distribution}[chart.kind](
        axes, chart, ink
    )
    axes.set_title(chart.title)
    axes.set_axisbelow(True)
    return figure


def _lines(axes: Any, chart: Chart, ink: str) -> None:
    for series, colour, marker in _marked(chart):
        if series.low is not None and series.high is not None:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
        few = max(len(one.x) for one in chart.series) <= 12
        axes.plot(
            series.x, series.y, color=colour, label=series.name, marker=marker if few else None, markersize=5
        )
    xs = sorted({x for series in chart.series for x in series.x})
    if len(xs) <= 12 and all(float(x).is_integer() for x in xs):
        axes.set_xticks(xs, [f"{x:.0f}" for x in xs])
    _finish(axes, chart, ink)


def _scatter(axes: Any, chart: Chart, ink: str) -> None:
    for place, (series, colour, marker) in enumerate(_marked(chart)):
        if series.low is not None and series.high is not None:
            spread = [
                [y - low for y, low in zip(series.y, series.low, strict=True)],
                [high - y for y, high in zip(series.y, series.high, strict=True)],
            ]
            axes.errorbar(series.x, series.y, spread, color=colour, fmt="none", alpha=0.35, linewidth=1)
        axes.plot(
            series.x, series.y, color=colour, marker=marker, markersize=6, linewidth=1.1, label=series.name
        )
        for x, y, label in zip(series.x, series.y, series.labels or (), strict=False):
            # By turns above and below: neighbours are often neighbours in the list too.
            offset = (4, 5) if place % 2 else (4, -12)
            axes.annotate(label, (x, y), offset, textcoords="offset points", fontsize=8, color=colour)
    if chart.log_x:
        axes.set_xscale("log")
        xs = [x for series in chart.series for x in series.x]
        ticks = _round_ticks(min(xs), max(xs))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    _finish(axes, chart, ink)


def _round_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the two."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [tick for tick in ticks if low * 0.8 <= tick <= high * 1.1]


def _bars(axes: Any, chart: Chart, ink: str) -> None:
    series = chart.series[0]
    low, high = series.low or series.y, series.high or series.y
    colours = [COLOURS[0] if value >= 0 else COLOURS[6] for value in series.y]
    axes.barh(range(len(series.y)), series.y, color=colours, height=0.62, alpha=0.85)
    spread = [
        [value - one for value, one in zip(series.y, low, strict=True)],
        [one - value for value, one in zip(series.y, high, strict=True)],
    ]
    axes.errorbar(
        series.y, range(len(series.y)), xerr=spread, fmt="none", color=ink, linewidth=1.2, capsize=3
    )
    axes.set_yticks(range(len(series.y)), series.labels or [])
    left, right = min(0.0, *low), max(0.0, *high)
    gap = 0.02 * (right - left)
    for place, (value, one, other) in enumerate(zip(series.y, low, high, strict=True)):
        at, side = (other + gap, "left") if value >= 0 else (one - gap, "right")
        axes.text(at, place, f"{value:+.0f}".replace("-", "−"), va="center", ha=side, fontsize=9)
    axes.set_xlim(left - 0.12 * (right - left) * (left < 0), right + 0.12 * (right - left))
    axes.axvline(0, color=ink, linewidth=0.8)
    axes.set_xlabel(chart.y_label)
    axes.grid(axis="x", color=ink, alpha=0.12)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _distribution(axes: Any, chart: Chart, ink: str) -> None:
    """One row a series, its density smoothed, its mean marked."""
    values = [value for series in chart.series for value in series.y]
    grid = np.linspace(*_widened(*np.quantile(values, [0.002, 0.998])), 300)
    rows = len(chart.series) - 1 - np.arange(len(chart.series))
    for row, (series, colour, _) in zip(rows, _marked(chart), strict=True):
        height = _density(np.asarray(series.y, dtype=float), grid)
        height = row + 0.82 * height / height.max()
        axes.fill_between(grid, row, height, color=colour, alpha=0.3, linewidth=0)
        axes.plot(grid, height, color=colour, linewidth=1.6)
        average = float(np.mean(series.y))
        axes.plot([average, average], [row, row + 0.82], color=ink, linewidth=1.2, linestyle=(0, (3, 2)))
        text = f"{average:+.2f}".replace("-", "−")
        axes.annotate(text, (average, row + 0.08), (4, 0), textcoords="offset points", fontsize=8)
    axes.set_yticks(rows, [series.name for series in chart.series], va="bottom")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=ink, linewidth=0.8, alpha=0.4)
    axes.set_xlabel(f"{chart.x_label} (dashed: mean)")


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _density(values: Any, grid: Any) -> Any:
    """Gaussian kernels, of Silverman's width; shape of `grid`."""
    width = 0.9 * (float(values.std()) or 1.0) * len(values) ** -0.2
    return np.exp(-0.5 * ((grid[:, None] - values[None]) / width) ** 2).mean(axis=1)


def _finish(axes: Any, chart: Chart, ink: str) -> None:
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(axis="both" if chart.kind == "scatter" else "y", color=ink, alpha=0.12)
    if chart.zero:
        axes.axhline(0, color=ink, linewidth=0.8)
    if len(chart.series) > 1:
        # Under the axes: it then covers no line, whatever the figures are.
        axes.figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=_columns(chart.series)
        )


def _columns(series: Sequence[Series]) -> int:
    longest = max(len(one.name) for one in series)
    return max(1, min(len(series), 84 // (longest + 6)))


def _marked(chart: Chart) -> Iterator[tuple[Series, str, str]]:
    """Each series with its colour and marker: its system's if it is the first of that name, or free ones."""
    hues: dict[int, int] = {}
    for place, series in enumerate(chart.series):
        wanted = next((hue for begin, hue in HUES.items() if series.name.startswith(begin)), None)
        if wanted is not None and wanted not in hues.values():
            hues[place] = wanted
    free = [hue for hue in range(len(COLOURS)) if hue not in hues.values()] or list(range(len(COLOURS)))
    others = (free[i % len(free)] for i in range(len(chart.series)))
    for place, series in enumerate(chart.series):
        hue = hues[place] if place in hues else next(others)
        yield series, COLOURS[hue], MARKERS[hue]
