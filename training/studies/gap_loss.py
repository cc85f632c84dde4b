"""The gap-loss ablation: the five-term loss, the single term wl > lw, and a difference of pointwise rewards.

Each gap reward is trained from the same checkpoint on the same pairs for the same number of steps,
calibrated, and followed by the same RL. Judged twice: as a judge, on the same held-out pairs and the same
samples of the models, and by the PIT that it makes. The paper's reviewers asked for
it; nobody has published it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from training.config import RunConfig
from training.judges import bootstrap_mean, compare
from training.studies.context import Context
from training.studies.figures import Cell, Chart, Figures, Series, Table, Value, delta, mean
from training.studies.gap_scores import GapReward, Row
from training.studies.judging import UNIT, scores
from training.studies.systems import RUN, Asked, System, pool
from training.systems import scored_order
from training.verdicts import expected_calibration_error

ITERATIONS = 3
NAMES = {RUN: "five terms", "single": "wl > lw alone", "pointwise": "pointwise difference"}
ROWS = ("held-out pairs", "PIT's first candidates", "PIT's second candidates", "a sentence lost")
Outcome = tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """`judged`: by gap reward and kind of rows, (P(better), the judge's difference) of each row."""

    asked: Asked
    judged: dict[str, dict[str, list[Outcome]]]
    identical: dict[str, float]


def gather(context: Context) -> Sample:
    runs = {RUN: context.run} | {name: context.variant(name) for name in ("single", "pointwise")}
    models = {
        name: {"improver": run.output / "improver", "gap_reward": run.output / "gap_reward"}
        for name, run in runs.items()
        if name != RUN
    }
    systems = {"Original": System("draft")}
    for name, shown in NAMES.items():
        # The run's own are asked as the main table asks them: then they are there already.
        k = context.study.iterations if name == RUN else min(ITERATIONS, context.study.iterations)
        systems[shown] = System("pit", name, k)
        systems[f"{shown}, gated"] = System("pit", name, k, gated=True)
    asked = context.desk(models).ask(systems)
    rows = _rows(asked)
    judged, identical = {}, {}
    for name, run in runs.items():
        judged[NAMES[name]], identical[NAMES[name]] = _judge(run, asked, rows)
    return Sample(asked, judged, identical)


def _rows(asked: Asked) -> dict[str, tuple[list[Row], list[float]]]:
    """The same rows for every gap reward: prompt, candidate, baseline; and the judge's differences."""
    shown = NAMES[RUN]
    texts = [asked.texts(shown, i) for i in range(3)]
    new, old = (list(side) for side in zip(*(scored_order(pair) for pair in asked.pairs), strict=True))
    broken = [_without_a_sentence(text) for text in texts[1]]
    kinds = {ROWS[0]: (new, old), ROWS[1]: (texts[1], texts[0]), ROWS[2]: (texts[2], texts[1]),
             ROWS[3]: (broken, texts[1])}  # fmt: skip
    found = {}
    for kind, (candidates, baselines) in kinds.items():
        keep = [
            i for i, (a, b) in enumerate(zip(candidates, baselines, strict=True)) if a.strip() != b.strip()
        ]
        differences = [
            a - b
            for a, b in zip(scores(asked.pairs, candidates), scores(asked.pairs, baselines), strict=True)
        ]
        rows: list[Row] = [(asked.pairs[i].prompt, candidates[i], baselines[i]) for i in keep]
        found[kind] = rows, [differences[i] for i in keep]
    return found


def _without_a_sentence(text: str) -> str:
    """The response with its second sentence dropped; said twice where it has no other."""
    sentences = text.split(". ")
    if len(sentences) < 3:
        return f"{text} {text}"
    return ". ".join([sentences[0], *sentences[2:]])


def _judge(
    run: RunConfig, asked: Asked, rows: dict[str, tuple[list[Row], list[float]]]
) -> tuple[dict[str, list[Outcome]], float]:
    gap = GapReward.of(run)
    found = {
        kind: list(zip(gap.probabilities(each), differences, strict=True))
        for kind, (each, differences) in rows.items()
    }
    same: list[Row] = [(pair.prompt, pair.chosen, pair.chosen) for pair in asked.pairs]
    return found, fmean(gap.raw(same))


def figures(samples: Sequence[Sample]) -> Figures:
    asked = pool([sample.asked for sample in samples])
    as_judge: list[list[Cell]] = []
    for shown in NAMES.values():
        row: list[Cell] = [shown]
        errors: list[Cell] = []
        for kind in ROWS:
            outcomes = [one for sample in samples for one in sample.judged[shown][kind]]
            untied = [(p, d > 0) for p, d in outcomes if d]
            if not untied:
                row.append("")
                continue
            hits = bootstrap_mean([100 * (0.5 if p == 0.5 else float((p > 0.5) == up)) for p, up in untied])
            row.append(mean(hits, digits=1))
            if kind in ROWS[:2]:
                error = expected_calibration_error([p for p, _ in untied], [up for _, up in untied])
                errors.append(Value(error, digits=3))
        as_judge.append([*row, *errors])
    columns = [
        "gap reward",
        *(f"{kind}, %" for kind in ROWS),
        "calibration error, held-out",
        "… on PIT's first",
    ]
    text = (
        f"n = {len(asked.pairs)} prompts. How often P(better) > ½ agrees with the judge. Rows are the same "
        "for all, taken from the five-term run; the judge's ties are left out. The fourth kind drops the "
        "second sentence of PIT's answer (or says the answer twice, where there are fewer than three)."
    )
    after: list[list[Cell]] = []
    original = scores(asked.pairs, asked.texts("Original"))
    loops: dict[str, list[list[float]]] = {}
    for shown in NAMES.values():
        for suffix in ("", ", gated"):
            name = f"{shown}{suffix}"
            loops[name] = [scores(asked.pairs, asked.texts(name, i)) for i in range(ITERATIONS + 1)]
    for name, each in loops.items():
        reference = loops[NAMES[RUN] + (", gated" if name.endswith("gated") else "")]
        versus = "" if each is reference else delta(compare(reference[-1], each[-1]))
        means = [mean(bootstrap_mean(one)) for one in each[1:]]
        after.append([name, *means, delta(compare(each[-1], original)), versus])
    pit = ["PIT made with it", *(f"mean ({UNIT}) after {i}" for i in range(1, ITERATIONS + 1)),
           "Δ vs Original", "five terms against it, Δ"]  # fmt: skip
    series = [
        Series(name, list(range(ITERATIONS + 1)), [fmean(one) for one in each])
        for name, each in loops.items()
    ]
    return Figures(
        tables=[Table("As a judge", columns, as_judge, text), Table("PIT that follows it", pit, after)],
        charts=[
            Chart("gap_loss", "PIT by the gap reward that it follows", "line", "iteration", UNIT, series)
        ],
    )
