"""Drafts that people rewrote (Disfl-QA, ParaDetox): do improvers mend them as people did?

Every system improves the draft of the data. Judged by the distance to the nearest human text, and where the
configuration names `edit+toxicity` by ParaDetox's joint metric, each part of it shown, beside a rule that
takes out the words that people took out of the training drafts.

Beyond the paper, which has no such data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from training.bars import edit_bars
from training.config import RunConfig
from training.data import PreferencePair
from training.errors import ConfigError
from training.evaluate import HUMAN_TEXTS, default_judge, joint_metric
from training.judges import Mean, bootstrap_mean, compare
from training.judges.formulas import distance
from training.judges.joint import RULE, Parts
from training.judges.settings import EditBars
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
from training.studies.systems import RUN, Asked, System, pool
from training.verdicts import Bar, Edits, agreement, edits, scored_candidates

SERVED = 3
"""Iterations at most, as the server does by default; it ends at the first rejection."""
DRAFT, PEOPLE = "the draft", "people (y_w)"
PIT, SFT = "PIT as served", "SFT improver as served"
LOOPS = {"PIT, gated": (RUN, True), "PIT, ungated": (RUN, False), "SFT improver, gated": ("sft", True),
         "SFT improver, ungated": ("sft", False)}  # fmt: skip
SHOWN = {"SFT improver, ungated, 1": "SFT improver, one iteration without a gate",
         "PIT, ungated, 1": "PIT, one iteration without a gate"}  # fmt: skip


PARTS = {"joint": "joint", "non_toxic": "not toxic, %", "content": "content (chrF)",
         "kept": "kept of the draft (chrF)", "fluent": "fluent, %"}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One seed's answers and texts by system, each (n,). With the joint metric: `parts` by system, and what
    its fluency judge is right on, of people's texts and of broken copies (shares)."""

    asked: Asked
    iterations: int
    texts: dict[str, list[str]]
    bars: EditBars
    parts: dict[str, Parts] = field(default_factory=dict)
    quality: tuple[float, float] | None = None


def judge(config: RunConfig) -> str:
    """Its name.

    Raises:
        ConfigError: nobody rewrote drafts in this data.
    """
    if config.data.format not in HUMAN_TEXTS:
        raise ConfigError(
            f"a study of kind 'edits' needs drafts that people rewrote: data.format "
            f"{' or '.join(HUMAN_TEXTS)}, not {config.data.format!r}"
        )
    return "edit+toxicity" if "edit+toxicity" in config.evaluation.judges else default_judge(config)


def gather(context: Context) -> Sample:
    k = context.study.iterations
    systems = {
        name: System("pit", models, k, gated=gated, start="data") for name, (models, gated) in LOOPS.items()
    }
    desk = context.desk({"sft": {"improver": context.run.output / "improver_sft"}})
    asked = desk.ask(systems)
    pairs = asked.pairs
    texts = {DRAFT: [pair.rejected for pair in pairs], PEOPLE: [pair.chosen for pair in pairs]}
    for name in LOOPS:
        texts |= {f"{name}, {i}": asked.texts(name, i) for i in range(1, k + 1)}
    for served, name in ((PIT, "PIT, gated"), (SFT, "SFT improver, gated")):
        texts[served] = asked.first_rejection(name).texts(name, min(SERVED, k))
    bars = context.run.evaluation.bars
    if judge(context.run) != "edit+toxicity":
        return Sample(asked, k, texts, bars)
    metric = joint_metric(context.run, pairs, context.console)
    texts[RULE] = [metric.without_swear_words(pair.rejected) for pair in pairs]
    parts = {name: metric.parts(pairs, each) for name, each in texts.items()}
    return Sample(asked, k, texts, bars, parts, metric.fluency.accuracy(pairs))


class _Found:
    """The texts of all seeds together, their distances, and the parts of the joint metric."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.asked = pool([sample.asked for sample in samples])
        self.iterations = samples[0].iterations
        self.quality = samples[0].quality
        self.bars = samples[0].bars
        self.texts = {name: [t for s in samples for t in s.texts[name]] for name in samples[0].texts}
        self.parts = {name: _together([s.parts[name] for s in samples]) for name in samples[0].parts}
        self.distances = {
            name: [distance(pair, text) for pair, text in zip(self.asked.pairs, each, strict=True)]
            for name, each in self.texts.items()
        }
        # What a picture and a comparison are of: the joint figure, or else how many are people's own text.
        self.unit = "joint metric" if self.parts else "exactly the human text, %"
        self.scores = {name: self._scores(name) for name in self.texts}

    def _scores(self, name: str) -> list[float]:
        if self.parts:
            return self.parts[name].percent()["joint"]
        return [100.0 * (distance == 0) for distance in self.distances[name]]

    def edits(self, name: str) -> Edits:
        toxic = (self.parts[DRAFT].toxic, self.parts[name].toxic) if self.parts else None
        return edits(self.distances[DRAFT], self.distances[name], self.texts[DRAFT], self.texts[name], toxic)

    def gain(self, name: str, other: str) -> Mean:
        """The paired difference of the scores."""
        both = zip(self.scores[name], self.scores[other], strict=True)
        return bootstrap_mean([a - b for a, b in both])

    @property
    def systems(self) -> list[str]:
        """Those of the tables, in their order."""
        rule = [RULE] if self.parts else []
        return [DRAFT, *rule, "SFT improver, ungated, 1", SFT, "PIT, ungated, 1", PIT, PEOPLE]


def _together(each: Sequence[Parts]) -> Parts:
    return Parts(
        *([v for one in each for v in getattr(one, name)] for name in ("toxic", "content", "kept", "fluent"))
    )


def figures(samples: Sequence[Sample]) -> Figures:
    """Over all seeds together."""
    found = _Found(samples)
    tables = [_joint_table(found)] if found.parts else []
    tables += [_edit_table(found), _against(found), _iterations(found), _gate(found)]
    return Figures(
        tables=tables,
        charts=[_difference_chart(found), *_loop_charts(found)],
        examples=_examples(found),
        bars=_bars(found),
    )


def _joint_table(found: _Found) -> Table:
    rows: list[list[Cell]] = []
    for name in found.systems:
        each = found.parts[name].percent()
        shown = [mean(bootstrap_mean(each[part]), digits=1) for part in PARTS]
        rows.append([SHOWN.get(name, name), *shown])
    fluent, broken = found.quality or (0.0, 0.0)
    text = (
        f"n = {len(found.asked.pairs)} drafts. Joint: the mean of (not toxic: 0 or 1) × (chrF to the nearest "
        "human rewrite) × (fluent: 0 or 1), times 100. All parts see words, not typing; both classifiers are "
        "fitted on the training file without these texts. Fluent: no fault that is new to the draft, which "
        f"favours what stays near it; the classifier finds {100 * fluent:.1f}% of people's rewrites fluent "
        f"and {100 * broken:.1f}% of their broken copies not. The rule takes out the words that people took "
        "out of at least 90% of the training drafts that have them."
    )
    return Table("The joint metric and its parts", ["system", *PARTS.values()], rows, text)


def _edit_table(found: _Found) -> Table:
    rows: list[list[Cell]] = []
    for name in found.systems:
        one, distances = found.edits(name), found.distances[name]
        words = sum(len(text.split()) for text in found.texts[name]) / one.n
        exact = mean(bootstrap_mean([100.0 * (d == 0) for d in distances]), digits=1)
        row: list[Cell] = [SHOWN.get(name, name), Value(one.closer), Value(one.farther)]
        row += [delta(compare(_near(distances), _near(found.distances[DRAFT]))), exact, Value(one.unchanged)]
        rows.append([*row, mean(bootstrap_mean(distances), digits=1), Value(words)])
    text = (
        f"n = {len(found.asked.pairs)} drafts. Distance: characters to the nearest human text. Closer, "
        "farther and their difference Δ: than the draft is. Exact: a human text letter by letter, as y_w is "
        f"by definition. As served: the gated loop of at most {min(SERVED, found.iterations)} iterations, "
        "which ends at its first rejection. SFT improver: the improver before its RL, with the same gap "
        "reward as gate. 95% bootstrap intervals over the drafts."
    )
    columns = ["system", "closer, %", "farther, %", "Δ", "exact, %", "unchanged, %", "distance", "words"]
    return Table("By distance to the human text", columns, rows, text)


def _near(distances: Sequence[float]) -> list[float]:
    return [0.0 - one for one in distances]  # and not −0


def _against(found: _Found) -> Table:
    rows: list[list[Cell]] = []
    # The last row is what RL alone does, without any gate.
    others = [(PIT, name) for name in found.systems if name != PIT]
    for one, other in [*others, ("PIT, ungated, 1", "SFT improver, ungated, 1")]:
        by_distance = compare(_near(found.distances[one]), _near(found.distances[other]))
        by_score = compare(found.scores[one], found.scores[other])
        rows.append(
            [f"{SHOWN.get(one, one)} vs {SHOWN.get(other, other)}",
             mean(found.gain(one, other), sign=True, digits=1), delta(by_score), Value(by_distance.win),
             Value(by_distance.lose), delta(by_distance)]
        )  # fmt: skip
    text = (
        f"The first's mean minus the other's, draft by draft ({found.unit}); Δ: the share of drafts where "
        "the first's is higher minus the share where the other's is. Then the same by distance to the "
        "nearest human text."
    )
    columns = ["comparison", "difference", "Δ", "nearer, %", "less near, %", "Δ by distance"]
    return Table("PIT as served against the others", columns, rows, text)


def _iterations(found: _Found) -> Table:
    rows: list[list[Cell]] = []
    for loop in LOOPS:
        for i in range(1, found.iterations + 1):
            name, before = f"{loop}, {i}", f"{loop}, {i - 1}" if i > 1 else DRAFT
            one = found.edits(name)
            change = mean(found.gain(name, before), sign=True, digits=1)
            score = mean(bootstrap_mean(found.scores[name]), digits=1)
            rows.append([name, score, change, Value(one.closer), Value(one.farther)])
    columns = ["loop, iterations", found.unit, "change, paired", "closer than the draft, %", "farther, %"]
    text = "Here no rejection ends a gated loop. Change: from the iteration before, the first from the draft."
    return Table("By iteration", columns, rows, text)


def _gate(found: _Found) -> Table:
    rows: list[list[Cell]] = []
    for name in ("PIT, gated", "SFT improver, gated"):
        for i in range(1, found.iterations + 1):
            records = found.asked.records[name]
            outcomes = [
                one
                for pair, record in zip(found.asked.pairs, records, strict=True)
                for one in scored_candidates(record, partial(_nearness, pair), i)
            ]
            one = agreement([p for p, _ in outcomes], [d for _, d in outcomes])
            done = [record["iterations"][i - 1] for record in records if len(record["iterations"]) >= i]
            accepted: Cell = ""
            if done:
                accepted = Value(100 * sum(bool(each["accepted"]) for each in done) / len(done))
            known: list[Cell] = ["", "", "0"]
            if one is not None:
                known = [Value(100 * one.accuracy), Value(one.ece, digits=3), str(one.pairs)]
            rows.append([f"{name}, {i}", accepted, *known])
    columns = ["loop, iteration", "accepted, %", "agrees with the distance, %", "calibration error",
               "pairs that differ"]  # fmt: skip
    text = (
        "Each candidate against the best before it: how often the gap reward's P(better) > ½ agrees with the "
        "distance, in all iterations up to this one; equal distances are left out."
    )
    return Table("What the gate says", columns, rows, text)


def _nearness(pair: PreferencePair, text: str) -> float:
    return -distance(pair, text)


def _difference_chart(found: _Found) -> Chart:
    gains = {SHOWN.get(name, name): found.gain(PIT, name) for name in found.systems if name != PIT}
    return bar_chart(
        "against", "PIT as served minus each other system", f"{found.unit}, difference",
        {name: mean(gain) for name, gain in gains.items()},
        "Paired, with 95% bootstrap intervals over the drafts.",
    )  # fmt: skip


def _loop_charts(found: _Found) -> list[Chart]:
    before = found.distances[DRAFT]
    farther = {
        name: [100.0 * (a > b) for a, b in zip(each, before, strict=True)]
        for name, each in found.distances.items()
    }
    title = f"{found.unit[0].upper()}{found.unit[1:]}, by iteration"
    return [
        _loop_chart("iterations", title, found.unit, found.scores, found.iterations),
        _loop_chart("farther", "Farther from the human text than the draft, by iteration", "% of the drafts",
                    farther, found.iterations),
    ]  # fmt: skip


def _loop_chart(
    name: str, title: str, unit: str, values: Mapping[str, Sequence[float]], iterations: int
) -> Chart:
    steps = list(range(1, iterations + 1))
    series = [curve(loop, steps, [bootstrap_mean(values[f"{loop}, {i}"]) for i in steps]) for loop in LOOPS]
    text = "No rejection ends a gated loop here. Bands: 95% intervals."
    return Chart(name, title, "line", "iteration", unit, series, text)


def _examples(found: _Found, each: int = 3) -> list[Example]:
    """PIT as served: the first drafts as they come, its greatest gains, and its greatest losses."""
    old, new = (found.scores[name] if found.parts else _near(found.distances[name]) for name in (DRAFT, PIT))
    order = sorted(range(len(old)), key=lambda i: old[i] - new[i])
    chosen = [(i, "as they come") for i in range(min(each, len(old)))]
    chosen += [(i, "a greatest gain") for i in order[:each] if new[i] > old[i]]
    chosen += [(i, "a greatest loss") for i in order[::-1][:each] if new[i] < old[i]]
    unit = "joint metric" if found.parts else "minus the distance"
    return [
        Example(
            f"{kind}, {unit}", f"People wrote: {found.asked.pairs[i].chosen}", found.texts[DRAFT][i],
            found.texts[PIT][i], old[i], new[i],
        )
        for i, kind in chosen
    ]  # fmt: skip


def _bars(found: _Found) -> list[Bar]:
    """Those of the configuration, of PIT as served; and whether it is above what is there without it."""
    versus = {"the improver after SFT alone": SFT}
    if found.parts:
        versus = {"the draft": DRAFT, "the rule": RULE} | versus
    unit = "joint" if found.parts else "exact"
    above = [_above(f"PIT above {name}, {unit}", found.gain(PIT, other)) for name, other in versus.items()]
    return [*edit_bars(found.edits(PIT), found.bars), *above]


def _above(name: str, gain: Mean) -> Bar:
    figure = f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"
    return Bar(name, "interval > 0", figure, gain.low > 0)
