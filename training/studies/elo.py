"""ELO of 11 systems: the policy, PIT after one to five iterations, Self-Refine after one to five.

A match is one prompt and two systems, the judge's higher score wins, equal scores draw. Ratings depend on the
order of matches: they are means over shuffled orders of resampled prompts, with the 2.5% and 97.5% quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from training.judges import bootstrap_mean
from training.studies.context import Context
from training.studies.figures import Cell, Chart, Figures, Series, Table, Value, mean
from training.studies.judging import UNIT, scores
from training.studies.systems import Asked, System, pool, self_refines

START, K, ORDERS, MATCHES = 1_000.0, 8.0, 200, 5_000


@dataclass(frozen=True)
class Sample:
    asked: Asked
    iterations: int


def gather(context: Context) -> Sample:
    k, heat = context.study.iterations, context.study.temperatures
    systems = {
        "Original": System("draft", temperature=heat.get("original")),
        "PIT, ungated": System("pit", iterations=k, temperature=heat.get("pit")),
        "PIT": System("pit", iterations=k, gated=True, temperature=heat.get("pit")),
        **self_refines(k, heat.get("self_refine")),
    }
    return Sample(context.desk().ask(systems), k)


def figures(samples: Sequence[Sample]) -> Figures:
    asked, k = pool([sample.asked for sample in samples]), samples[0].iterations
    refined = [name for name in asked.records if name.startswith("Self-Refine")]
    # The rubric with the highest mean over all iterations, on these prompts: to the baseline's advantage.
    best = max(refined, key=lambda n: sum(sum(_after(asked, n, i)) for i in range(1, k + 1)))
    tables, charts = [], []
    for title, pit in (("without a gate, as in the paper", "PIT, ungated"), ("with the gate", "PIT")):
        found = {"Original": scores(asked.pairs, asked.texts("Original"))}
        for name in (pit, best):
            found |= {f"{name}, {i}": _after(asked, name, i) for i in range(1, k + 1)}
        ratings = elo(found)
        tables.append(_table(title, found, ratings, best, len(asked.pairs)))
        charts.append(_chart(title, ratings, (pit, best), k))
    return Figures(tables=tables, charts=charts)


def _after(asked: Asked, name: str, iterations: int) -> list[float]:
    return scores(asked.pairs, asked.texts(name, iterations))


def elo(
    found: Mapping[str, Sequence[float]], *, orders: int = ORDERS, matches: int = MATCHES, seed: int = 0
) -> dict[str, Value]:
    """Ratings from scores by system, each (n,): mean over `orders` draws of `matches` matches each."""
    values = np.array([found[name] for name in found], dtype=float)
    pairs = np.array(list(combinations(range(len(values)), 2)))
    generator = np.random.default_rng(seed)
    ratings = np.full((orders, len(values)), START)
    rows = np.arange(orders)
    for _ in range(matches):
        # One match of every order at a time.
        one, other = pairs[generator.integers(len(pairs), size=orders)].T
        prompt = generator.integers(values.shape[1], size=orders)
        outcome = 0.5 + 0.5 * np.sign(values[one, prompt] - values[other, prompt])
        expected = 1 / (1 + 10 ** ((ratings[rows, other] - ratings[rows, one]) / 400))
        change = K * (outcome - expected)
        ratings[rows, one] += change
        ratings[rows, other] -= change
    low, high = np.quantile(ratings, [0.025, 0.975], axis=0)
    means = ratings.mean(axis=0)
    return {
        name: Value(float(means[i]), float(low[i]), float(high[i]), digits=0) for i, name in enumerate(found)
    }


def _table(
    title: str, found: Mapping[str, Sequence[float]], ratings: Mapping[str, Value], best: str, n: int
) -> Table:
    order = sorted(ratings, key=lambda name: -ratings[name].value)
    rows: list[list[Cell]] = [[name, ratings[name], mean(bootstrap_mean(found[name]))] for name in order]
    text = (
        f"n = {n} prompts. Start {START:g}, K = {K:g}, {MATCHES:,} matches an order, {ORDERS} orders; the "
        f"interval is that of single orders. {best}: the rubric with the highest mean on these prompts."
    )
    return Table(f"ELO, PIT {title}", ["system, iterations", "rating", f"mean ({UNIT})"], rows, text)


def _chart(title: str, ratings: Mapping[str, Value], names: Sequence[str], k: int) -> Chart:
    series = []
    for name in names:
        found = [ratings["Original"], *(ratings[f"{name}, {i}"] for i in range(1, k + 1))]
        series.append(
            Series(
                name, list(range(k + 1)), [v.value for v in found], [v.low or 0.0 for v in found],
                [v.high or 0.0 for v in found],
            )
        )  # fmt: skip
    slug = "elo_gated" if names[0] == "PIT" else "elo"
    return Chart(slug, f"ELO by iteration, PIT {title}", "line", "iteration", "rating", series,
                 "Iteration 0 is the Original. Bands: 95% of the orders.")  # fmt: skip
