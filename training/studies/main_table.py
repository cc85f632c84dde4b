"""The main table: every system against the policy's own answer, and PIT against every other system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.judges import Mean, WinRate, bootstrap_mean, compare
from training.paths import improver_anchor
from training.studies.context import Context
from training.studies.figures import (
    Cell,
    Chart,
    Example,
    Figures,
    Table,
    Value,
    bar_chart,
    curve,
    delta,
    mean,
)
from training.studies.judging import HIGHEST, UNIT, scores
from training.studies.systems import Asked, System, pool, self_refines, with_data
from training.verdicts import Bar, Comparison, compare_systems

HEADLINE = 3
"""Iterations of the systems in the table: the server's default."""
PIT, UNGATED, ORIGINAL, BEST = "PIT", "PIT, ungated", "Original", "best-of-4"
LEARNED = {"SFT improver": "sft", "RFT improver": "rft", "DPO improver": "dpo"}
"""Improvers as they are before RL, and one trained otherwise in its place."""


@dataclass(frozen=True)
class Sample:
    """One seed's answers, and the best-of-n of equal tokens by its name."""

    seed: int
    asked: Asked
    equal: str


def gather(context: Context) -> Sample:
    """Ask every system; the n of best-of-n at PIT's tokens comes from what PIT and best-of-4 were measured to
    take."""
    study, heat = context.study, context.study.temperatures
    k, t = study.iterations, heat.get("pit")
    systems = {
        ORIGINAL: System("draft", temperature=heat.get("original")),
        PIT: System("pit", iterations=k, gated=True, temperature=t),
        UNGATED: System("pit", iterations=k, temperature=t),
        BEST: System("best_of_n", candidates=4, gated=True, temperature=heat.get("best_of_n")),
        **self_refines(k, heat.get("self_refine"), study.rubrics),
    }
    desk = context.desk({"sft": {"improver": context.run.output / "improver_sft"}})
    if context.run.rft_improver is not None:
        desk.models["rft"] = {"improver": improver_anchor(context.run)}
    if "dpo" in study.variants:
        desk.models["dpo"] = {"improver": context.variant("dpo").output / "improver"}
    for name, models in LEARNED.items():
        if models in desk.models:
            systems[name] = System("pit", models, min(HEADLINE, k), gated=True, temperature=t)
    asked = desk.ask(systems)
    n = equal_tokens(asked, min(HEADLINE, k))
    equal = f"best-of-{n} (PIT's tokens)"
    systems[equal] = System("best_of_n", candidates=n, gated=True, temperature=heat.get("best_of_n"))
    return Sample(context.run.seed, with_data(desk.ask(systems)), equal)


def equal_tokens(asked: Asked, iterations: int) -> int:
    """How many candidates cost as many tokens, read and written, as PIT's iterations.

    What the gap reward reads is not counted: it reads more of best-of-n, which then had fewer candidates.
    """
    one = asked.tokens(BEST, 1)["total"] / 4
    return max(1, min(16, round(asked.tokens(PIT, iterations)["total"] / one)))


def figures(samples: Sequence[Sample]) -> Figures:
    """Over all seeds together; the seeds apart where there are several."""
    renamed = [_renamed(sample) for sample in samples]
    everything = pool(renamed)
    equal = samples[0].equal if len({s.equal for s in samples}) == 1 else "best-of-n (PIT's tokens)"
    everything = _with_best_rubric(everything)
    names = [ORIGINAL, "y_w", "y_l", PIT, UNGATED, "Self-Refine", BEST, EQUAL]
    names += [name for name in LEARNED if name in everything.records]
    table = _Table(everything)
    versus = [table.compare(name, ORIGINAL) for name in names if name != ORIGINAL]
    against = [table.compare(PIT, name) for name in names if name not in (PIT, ORIGINAL, "y_l")]
    tables = [
        _systems(table, names, {EQUAL: equal}),
        _comparisons("PIT against the others", against, {EQUAL: equal}),
        *_loops(table),
    ]
    if len(samples) > 1:
        tables.append(_seeds(samples, renamed))
    return Figures(
        tables=tables,
        charts=[_bar_chart(versus, {EQUAL: equal}), _loop_chart(table)],
        examples=_examples(everything),
        bars=_bars(table),
    )


EQUAL = "best-of-n"


def _renamed(sample: Sample) -> Asked:
    """Best-of-n at equal tokens under one name, whatever its n was with this seed."""
    records = {EQUAL if name == sample.equal else name: r for name, r in sample.asked.records.items()}
    return Asked(sample.asked.pairs, records)


def _rubrics(asked: Asked) -> list[str]:
    return [name for name in asked.records if name.startswith("Self-Refine (")]


def _with_best_rubric(asked: Asked) -> Asked:
    """Self-Refine by the rubric with the highest mean on these very examples, which favours the baseline."""
    names = _rubrics(asked)
    means = {name: sum(scores(asked.pairs, asked.texts(name, HEADLINE))) for name in names}
    best = max(names, key=means.__getitem__)
    return Asked(asked.pairs, {**asked.records, "Self-Refine": asked.records[best]})


class _Table:
    """Texts and scores of each system after the headline's iterations, computed once."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._known: dict[tuple[str, int], tuple[list[str], list[float]]] = {}

    def get(self, name: str, iterations: int = HEADLINE) -> tuple[list[str], list[float]]:
        key = (name, iterations)
        if key not in self._known:
            texts = self.asked.texts(name, iterations)
            self._known[key] = texts, scores(self.asked.pairs, texts)
        return self._known[key]

    def compare(self, name: str, other: str, iterations: int = HEADLINE) -> Comparison:
        (texts, mine), (others, theirs) = self.get(name, iterations), self.get(other, iterations)
        return compare_systems(f"{name} vs {other}", mine, theirs, texts, others)

    def least_against_self_refine(self) -> Comparison:
        """PIT against Self-Refine after as many iterations, each time by its best rubric: the smallest Δ."""
        rubrics = _rubrics(self.asked)
        found = []
        for i in range(1, min(HEADLINE, self.depth) + 1):
            best = max(rubrics, key=lambda name: sum(self.get(name, i)[1]))
            found.append(self.compare(PIT, best, i))
        return min(found, key=lambda one: one.rate.delta)

    @property
    def depth(self) -> int:
        return max(len(record["iterations"]) for record in self.asked.records[UNGATED])


def _systems(table: _Table, names: Sequence[str], shown: dict[str, str]) -> Table:
    rows: list[list[Cell]] = []
    for name in names:
        texts, found = table.get(name)
        tokens = table.asked.tokens(name, None if name == ORIGINAL else HEADLINE)
        words = sum(len(text.split()) for text in texts) / len(texts)
        row: list[Cell] = [shown.get(name, name), mean(bootstrap_mean(found))]
        if name == ORIGINAL:
            row += ["", "", "", ""]
        else:
            one = table.compare(name, ORIGINAL)
            row += [Value(one.rate.win), Value(one.rate.lose), delta(one.rate), delta(one.length_controlled)]
        total: Cell = "" if name.startswith("y_") else Value(tokens["total"], digits=0)
        judged: Cell = "" if name.startswith("y_") else Value(tokens["score"], digits=0)
        written: Cell = "" if name.startswith("y_") else Value(tokens["completion"], digits=0)
        rows.append([*row, Value(words), written, total, judged])
    n = len(table.asked.pairs)
    room = _room(table)
    rubrics, records = _rubrics(table.asked), table.asked.records
    best = next(name for name in rubrics if records[name] is records["Self-Refine"])
    chosen = ", the rubric with the highest mean on these prompts" if len(rubrics) > 1 else ""
    text = (
        f"n = {n} prompts. Win, lose and Δ = win% − lose% against Original, by {UNIT}, with 95% bootstrap "
        f"intervals over the prompts; ties are the rest. Systems that iterate: after {HEADLINE} iterations. "
        f"Self-Refine: {best}{chosen}. Tokens: mean of one prompt, written, and read and written together; "
        "beside it what the gap reward read to judge them. The draft that a system begins with is not "
        f"counted. No Δ can be above {room:+.0f}: the other Originals have the highest score there is."
    )
    columns = ["system", f"mean ({UNIT})", "win %", "lose %", "Δ vs Original", "Δ at equal length", "words",
               "written", "tokens", "gap reward's"]  # fmt: skip
    return Table("Systems", columns, rows, text)


def _comparisons(title: str, found: Sequence[Comparison], shown: dict[str, str]) -> Table:
    rows: list[list[Cell]] = []
    for one in found:
        name, _, other = one.name.partition(" vs ")
        rows.append(
            [f"{shown.get(name, name)} vs {shown.get(other, other)}", Value(one.rate.win),
             Value(one.rate.lose), delta(one.rate), delta(one.length_controlled),
             Value(one.score.mean, digits=2), Value(one.baseline_score.mean, digits=2)]
        )  # fmt: skip
    columns = ["comparison", "win %", "lose %", "Δ", "Δ at equal length", "mean", "mean of the other"]
    return Table(title, columns, rows)


def _loops(table: _Table) -> list[Table]:
    found = []
    for name in (PIT, UNGATED, "Self-Refine"):
        rows: list[list[Cell]] = []
        for i in range(table.depth + 1):
            now = table.get(name, i)[1]
            row: list[Cell] = [str(i), mean(bootstrap_mean(now))]
            if i:
                before, first = table.get(name, i - 1)[1], table.get(name, 0)[1]
                gain = bootstrap_mean([a - b for a, b in zip(now, before, strict=True)])
                row += [mean(gain, sign=True, digits=3), delta(compare(now, first))]
            rows.append([*row, *[""] * (4 - len(row))])
        columns = ["iteration", f"mean ({UNIT})", "change, paired", "Δ vs its draft"]
        found.append(Table(f"{name} by iteration", columns, rows))
    return found


def _bar_chart(found: Sequence[Comparison], shown: dict[str, str]) -> Chart:
    names = [one.name.removesuffix(f" vs {ORIGINAL}") for one in found]
    values = {shown.get(name, name): delta(one.rate) for name, one in zip(names, found, strict=True)}
    return bar_chart("systems", "Each system against the Original", "Δ = win% − lose%", values,
                "95% bootstrap intervals over the prompts.")  # fmt: skip


def _loop_chart(table: _Table) -> Chart:
    series = []
    steps = list(range(table.depth + 1))
    for name in (PIT, UNGATED, "Self-Refine"):
        found = [bootstrap_mean(table.get(name, i)[1]) for i in steps]
        series.append(curve(name, steps, found))
    return Chart("iterations", "Mean score by iteration", "line", "iteration", UNIT, series,
                 "Iteration 0 is the draft. Bands: 95% intervals.")  # fmt: skip


def _room(table: _Table) -> float:
    """The highest Δ that any system can have against the Original."""
    found = table.get(ORIGINAL)[1]
    return 100 * sum(score < HIGHEST for score in found) / len(found)


def _seeds(samples: Sequence[Sample], renamed: Sequence[Asked]) -> Table:
    rows: list[list[Cell]] = []
    for sample, asked in zip(samples, renamed, strict=True):
        table = _Table(_with_best_rubric(asked))
        versus = [table.compare(PIT, name) for name in (ORIGINAL, "Self-Refine", "y_w", EQUAL)]
        first: list[Cell] = [str(sample.seed), delta(versus[0].rate), Value(_room(table), sign=True)]
        rows.append([*first, *[delta(one.rate) for one in versus[1:]], mean(versus[0].score)])
    columns = ["seed", "PIT vs Original", "at most", "vs Self-Refine", "vs y_w", "vs best-of-n, equal tokens",
               "mean"]  # fmt: skip
    text = "At most: the share of Originals that do not have the highest score there is."
    return Table("Each training seed", columns, rows, text)


def _examples(asked: Asked, each: int = 3) -> list[Example]:
    """The greatest gains of PIT, its greatest losses, and those without its gate."""
    found = []
    for name, sign in ((PIT, 1), (PIT, -1), (UNGATED, -1)):
        before, after = asked.texts(name, 0), asked.texts(name, HEADLINE)
        old, new = scores(asked.pairs, before), scores(asked.pairs, after)
        order = sorted(range(len(old)), key=lambda i: sign * (old[i] - new[i]))
        for i in [i for i in order[:each] if sign * (new[i] - old[i]) > 0]:
            title = f"{name}: {'gain' if sign > 0 else 'loss'} of {abs(new[i] - old[i]):.2f}"
            prompt = asked.pairs[i].prompt[-1]["content"]
            found.append(Example(title, prompt, before[i], after[i], old[i], new[i]))
    return found


def _bars(table: _Table) -> list[Bar]:
    """Those of the project for the synthetic data."""
    original, refined = table.compare(PIT, ORIGINAL), table.compare(PIT, "Self-Refine")
    best = table.least_against_self_refine()
    n = len(table.asked.pairs)
    bars = [
        Bar("prompts in all", "≥ 1,000", str(n), n >= 1_000),
        Bar("PIT vs Original", "Δ ≥ +80", str(original.rate), original.rate.delta >= 80),
        Bar(f"PIT vs the best Self-Refine, {HEADLINE} iterations each", "Δ ≥ +50", str(refined.rate),
            refined.rate.delta >= 50),
        Bar("PIT vs the best Self-Refine, the least of equal counts", "Δ ≥ +50", str(best.rate),
            best.rate.delta >= 50),
        Bar("both intervals above 0", "low > 0", f"{original.rate.low:+.1f}, {best.rate.low:+.1f}",
            min(original.rate.low, best.rate.low) > 0),
        Bar("both positive at equal length", "Δ > 0",
            f"{original.length_controlled.delta:+.1f}, {best.length_controlled.delta:+.1f}",
            min(original.length_controlled.delta, best.length_controlled.delta) > 0),
        _above("PIT above y_w", table.compare(PIT, "y_w")),
        _above("PIT above best-of-n at equal tokens", table.compare(PIT, EQUAL)),
    ]  # fmt: skip
    gains = [
        bootstrap_mean([a - b for a, b in zip(table.get(PIT, i)[1], table.get(PIT, i - 1)[1], strict=True)])
        for i in range(1, table.depth + 1)
    ]
    lowest = min(gains, key=lambda gain: gain.mean)
    bars.append(Bar("gated iterations never fall", "no change below 0", _gain(lowest), lowest.mean >= 0))
    for i, word in ((2, "second"), (3, "third")):
        if len(gains) >= i:
            gain = gains[i - 1]
            bars.append(Bar(f"the {word} gated iteration gains", "interval > 0", _gain(gain), gain.low > 0))
    return bars


def _gain(gain: Mean) -> str:
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _above(name: str, one: Comparison) -> Bar:
    rate: WinRate = one.rate
    return Bar(name, "Δ > 0, interval too", str(rate), rate.low > 0)
