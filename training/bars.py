"""The bars for evaluation, the project's own and those of a configuration, held against the figures: PASS or
MISS, with the numbers.

Where a bar leaves room, the stricter reading is taken, and its line says which.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.analysis import Figures
from training.judges.settings import EditBars
from training.systems import BEST_OF
from training.verdicts import Bar, Comparison, Edits, Row


def gold_bars(figures: Figures) -> list[Bar]:
    """For data with a gold scorer."""
    by_name = {one.name: one for one in figures.comparisons}
    refined = [one for name, one in by_name.items() if name.startswith("PIT ungated vs Self-Refine")]
    weakest = min(refined, key=lambda one: one.rate.delta)
    original = next(one for one in figures.content if one.name == "Original")
    bars = [
        _delta("PIT vs Original (gated)", by_name["PIT vs Original"], 50),
        _delta(f"{weakest.name}, the weakest of all equal counts", weakest, 40),
        _above("PIT above y_w", by_name["PIT vs y_w"]),
        _above(f"PIT above best-of-{BEST_OF}", by_name[f"PIT vs best-of-{BEST_OF}"]),
        *_iterations(figures.loops["pit_gated"]),
        Bar(
            "values right in the policy's fact sentences",
            "≥ 95%",
            "no fact sentence" if original.right is None else f"{original.right:.1f}% of {original.facts}",
            original.right is not None and original.right >= 95,
        ),
    ]
    for title in ("held-out pairs", "PIT output and its reference"):
        found = figures.agreements[title]
        figure = f"{100 * found.accuracy:.1f}% of {found.pairs}" if found else "no pair without a tie"
        bars.append(
            Bar(
                f"gap reward agrees with gold, {title}",
                "≥ 85%",
                figure,
                bool(found and found.accuracy >= 0.85),
            )
        )
    ece = figures.label["ece"]
    bars.append(
        Bar("calibration error, held-out pairs, against their labels", "≤ 0.05", f"{ece:.3f}", ece <= 0.05)
    )
    return bars + _cost(figures)


def _delta(name: str, one: Comparison, wanted: float) -> Bar:
    return Bar(name, f"Δ ≥ {wanted:+g}", str(one.rate), one.rate.delta >= wanted)


def _above(name: str, one: Comparison) -> Bar:
    higher = one.score.mean > one.baseline_score.mean
    figure = f"{one.rate}; mean {one.score.mean:.2f} against {one.baseline_score.mean:.2f}"
    return Bar(name, "Δ > 0 and a higher mean score", figure, one.rate.delta > 0 and higher)


def _iterations(rows: Sequence[Row]) -> list[Bar]:
    """Gated: no fall beyond its interval, and the second iteration still gains."""
    gains = [(row.iteration, row.gain) for row in rows if row.gain is not None]
    worst = min(gains, key=lambda each: each[1].mean)
    falls = [i for i, gain in gains if gain.high < 0]
    bars = [
        Bar(
            "gated mean score never falls beyond its interval", "no iteration",
            f"{len(falls)} falls; the smallest change, at iteration {worst[0]}: {worst[1]}", not falls,
        )
    ]  # fmt: skip
    if len(gains) > 1:
        second = gains[1][1]
        bars.append(
            Bar("the second gated iteration still gains", "interval above 0", str(second), second.low > 0)
        )
    return bars


def _cost(figures: Figures) -> list[Bar]:
    """PIT's tokens against Self-Refine's where PIT is at least as good as Self-Refine at its best."""
    refined = max((s for s in figures.spent if s.name.startswith("self_refine")), key=lambda s: s.score)
    equal = [s for s in figures.spent if s.name.casefold().startswith("pit") and s.score >= refined.score]
    name = "PIT's tokens (read and written) at Self-Refine's best quality"
    if not equal:
        return [Bar(name, "≤ 0.6 of Self-Refine's", "PIT never reaches that quality", False)]
    cheapest = min(equal, key=lambda s: s.total)
    ratio = cheapest.total / refined.total
    figure = f"{ratio:.2f} ({cheapest.name}: {cheapest.total:.0f}; {refined.name}: {refined.total:.0f})"
    return [Bar(name, "≤ 0.6 of Self-Refine's", figure, ratio <= 0.6)]


def edit_bars(found: Edits, wanted: EditBars) -> list[Bar]:
    """For drafts that people rewrote; those that the configuration names (`evaluation.bars`)."""
    bars = []
    if wanted.exact is not None:
        bars.append(_least("exactly the human text", found.exact, wanted.exact, found.n))
    if wanted.closer is not None:
        bars.append(_least("closer to the human text than the draft", found.closer, wanted.closer, found.n))
    if wanted.farther is not None:
        name, figure = "farther from the human text than the draft", _share(found.farther, found.n)
        bars.append(Bar(name, f"≤ {wanted.farther:g}%", figure, found.farther <= wanted.farther))
    if wanted.both is not None and found.both is not None:  # another judge does not say what is toxic
        name, figure = "less toxic than the draft, and closer to the human text", _share(found.both, found.n)
        bars.append(Bar(name, f"> {wanted.both:g}%", figure, found.both > wanted.both))
    return bars


def _least(name: str, share: float, wanted: float, n: int) -> Bar:
    return Bar(name, f"≥ {wanted:g}%", _share(share, n), share >= wanted)


def _share(percent: float, n: int) -> str:
    return f"{percent:.2f}% of {n}"
