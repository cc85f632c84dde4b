"""Preferences of people without a judge of their own (HH-RLHF): does a gap reward learn them, and what is the
PIT that follows it worth to judges that it does not know?

First its accuracy on held-out pairs, beside length and a bag of words. Then contests between the policy,
y_w, PIT, Self-Refine and best-of-4. Their judges: those that the configuration's `evaluation` names (a reward
model that training did not use, a language model, people), and a bag of words fitted on the reward part,
which costs nothing and which no training followed. "y_w vs y_l" says what each judge is worth: how often it
prefers what people preferred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from training.baselines import bag_of_words
from training.config import RunConfig
from training.contests import make_contests, write_texts
from training.judges import Contest, Judge, MarginJudge, Mean, Verdict
from training.judges.choice import check_judges, make_judge
from training.judging import Judgement, judge_all, judgement
from training.prepare import read_part
from training.studies.context import Context
from training.studies.figures import Cell, Chart, Example, Figures, Table, Value, bar_chart, delta
from training.studies.systems import Asked, System, pool, self_refines, with_data
from training.verdicts import Bar

if TYPE_CHECKING:
    from training.accuracy import Accuracy

HEADLINE = 3
"""Iterations of the systems that iterate: the server's default."""
ORIGINAL, PIT, UNGATED, BEST = "Original", "PIT", "PIT, ungated", "best-of-4"
WORDS = "bag of words"
INTERVALS = "95% bootstrap intervals."


@dataclass(frozen=True)
class Sample:
    """One seed: its answers, its reward models' accuracy, and by judge and comparison what was judged."""

    seed: int
    asked: Asked
    accuracy: Accuracy
    judged: dict[str, dict[str, list[tuple[Contest, Verdict]]]]


def judge(config: RunConfig) -> str:
    """The names of the judges.

    Raises:
        ConfigError: one of them has no settings.
    """
    check_judges(config.evaluation.judges, config.evaluation)
    return ", ".join([*config.evaluation.judges, WORDS])


def gather(context: Context) -> Sample:
    from training.accuracy import measure

    with context.console.status("judging held-out pairs"):
        accuracy = measure(context.run)
    k, heat = context.study.iterations, context.study.temperatures
    systems = {
        ORIGINAL: System("draft", temperature=heat.get("original")),
        PIT: System("pit", iterations=k, gated=True, temperature=heat.get("pit")),
        UNGATED: System("pit", iterations=k, temperature=heat.get("pit")),
        **self_refines(k, heat.get("self_refine")),
        BEST: System("best_of_n", candidates=4, gated=True, temperature=heat.get("best_of_n")),
    }
    asked = with_data(context.desk().ask(systems))
    return Sample(context.run.seed, asked, accuracy, _judged(context, asked))


def _judged(context: Context, asked: Asked) -> dict[str, dict[str, list[tuple[Contest, Verdict]]]]:
    texts = {name: asked.texts(name, HEADLINE) for name in asked.records}
    # For people, or a judge elsewhere: what `pit-train judge serve` takes.
    write_texts(context.directory / "texts.jsonl", asked.pairs, texts)
    given = make_contests(asked.pairs, texts, _comparisons(asked))
    llm, found = context.run.evaluation.llm, {}
    for one in _judges(context):
        limit = llm.examples if llm is not None and one.name == "llm" else None
        mine = {name: each[:limit] for name, each in given.items()}
        verdicts = judge_all(one, mine, context.confirm)
        found[one.name] = {name: list(zip(each, verdicts[name], strict=True)) for name, each in mine.items()}
    return found


def _comparisons(asked: Asked) -> list[tuple[str, str]]:
    refined = [name for name in asked.records if name.startswith("Self-Refine")]
    found = [("y_w", "y_l"), (ORIGINAL, "y_w"), (PIT, ORIGINAL), (UNGATED, ORIGINAL)]
    found += [*((name, ORIGINAL) for name in refined), (BEST, ORIGINAL)]
    return [*found, (PIT, "y_w"), (PIT, BEST), *((PIT, name) for name in refined)]


def _judges(context: Context) -> list[Judge]:
    evaluation = context.run.evaluation
    named = [make_judge(name, evaluation, context.directory) for name in evaluation.judges]
    return [*named, words_judge(context.run)]


def words_judge(config: RunConfig) -> MarginJudge:
    """A bag of words fitted on the reward part of a run's data (baselines.py)."""
    margin = partial(_margins, config)
    return MarginJudge(WORDS, margin, {"fitted on": f"{config.output.name}/data/reward.jsonl"})


def _margins(config: RunConfig, given: Sequence[Contest]) -> list[float]:
    pairs = [replace(one.example, chosen=one.first, rejected=one.second) for one in given]
    return bag_of_words(read_part(config, "reward"), pairs, config.seed).margins


def figures(samples: Sequence[Sample]) -> Figures:
    """Accuracy seed by seed; contests of all seeds together."""
    asked = pool([sample.asked for sample in samples])
    found = {name: _judgements(samples, name) for name in samples[0].judged}
    return Figures(
        tables=[
            _accuracy_table(samples),
            *(_judge_table(name, each) for name, each in found.items()),
            _systems(asked),
        ],
        charts=[_accuracy_chart(samples[0]), *(_judge_chart(name, each) for name, each in found.items())],
        examples=_examples(samples[0]),
        bars=_bars(samples[0], found),
    )


def _judgements(samples: Sequence[Sample], name: str) -> list[Judgement]:
    found = []
    for comparison in samples[0].judged[name]:
        rows = [row for sample in samples for row in sample.judged[name][comparison]]
        found.append(
            judgement(comparison, [contest for contest, _ in rows], [verdict for _, verdict in rows])
        )
    return found


def _percent(found: Mean, *, sign: bool = False, less: float = 0.0) -> Value:
    """A share in percent; `less` is taken off."""
    value, low, high = (100 * each - less for each in (found.mean, found.low, found.high))
    return Value(value, low, high, sign=sign)


def _accuracy_table(samples: Sequence[Sample]) -> Table:
    rows: list[list[Cell]] = []
    for sample in samples:
        for row in sample.accuracy.rows:
            ahead = "" if row.gap_reward_ahead is None else _percent(row.gap_reward_ahead, sign=True)
            name = row.judge if len(samples) == 1 else f"{row.judge}, seed {sample.seed}"
            rows.append([name, _percent(row.accuracy), ahead, row.model])
    first = samples[0].accuracy
    text = (
        f"{first.heldout.pairs} held-out pairs ({first.heldout.too_long} more exceed the length budget); a "
        f"tie counts half. Trained, and the baselines fitted, on {first.reward.pairs} pairs of the reward "
        "part. Chance is 50. Ahead: the gap reward's accuracy minus the row's, on the same pairs. 95% "
        "bootstrap intervals over the pairs."
    )
    columns = ["judge", "accuracy, %", "gap reward ahead by", "what it is"]
    return Table("What people preferred, foretold", columns, rows, text)


def _judge_table(name: str, found: Sequence[Judgement]) -> Table:
    rows: list[list[Cell]] = []
    for one in found:
        figures: list[Cell] = ["", "", "", "", "0"]
        if one.rate is not None and one.length_controlled is not None:
            figures = [Value(one.rate.win), Value(one.rate.lose), delta(one.rate),
                       delta(one.length_controlled), str(one.rate.n)]  # fmt: skip
        missing = "; ".join(f"{count} {reason}" for reason, count in one.missing.items())
        rows.append([one.name, *figures, missing, f"{one.words:.1f} / {one.baseline_words:.1f}"])
    text = (
        "Δ = win% − lose%, ties are the rest, with 95% bootstrap intervals over the prompts. y_w vs y_l says "
        f"what the judge itself is worth. Systems that iterate: after at most {HEADLINE} iterations."
    )
    if name == WORDS:
        text += " It sees words alone: it cannot tell nonsense made of good words from an answer."
    columns = ["comparison", "win %", "lose %", "Δ", "Δ at equal length", "n", "no verdict", "words"]
    return Table(f"Judged by {name}", columns, rows, text)


def _systems(asked: Asked) -> Table:
    rows: list[list[Cell]] = []
    original = asked.texts(ORIGINAL)
    for name in asked.records:
        texts, n = asked.texts(name, HEADLINE), len(asked.pairs)
        words = Value(sum(len(text.split()) for text in texts) / n)
        same = sum(a.strip() == b.strip() for a, b in zip(texts, original, strict=True))
        tokens = asked.tokens(name, None if name == ORIGINAL else HEADLINE)
        data = name.startswith("y_")
        rows.append(
            [name, words, "" if data else Value(100 * same / n), "" if data else Value(tokens["completion"]),
             "" if data else Value(tokens["total"]), "" if data else Value(tokens["score"])]
        )  # fmt: skip
    columns = ["system", "words", "the Original unchanged, %", "written", "tokens", "gap reward's"]
    text = (
        f"n = {len(asked.pairs)} prompts. Tokens: mean of one prompt, written, and read and written; beside "
        "it what the gap reward read. The draft that a system begins with is not counted."
    )
    return Table("Systems", columns, rows, text)


def _accuracy_chart(sample: Sample) -> Chart:
    each = {row.judge: _percent(row.accuracy, less=50) for row in sample.accuracy.rows}
    title, label = "Held-out preferences foretold, above chance", "accuracy − 50, percentage points"
    return bar_chart("accuracy", title, label, each, INTERVALS)


def _judge_chart(name: str, found: Sequence[Judgement]) -> Chart:
    each = {
        one.name.removesuffix(f" vs {ORIGINAL}"): delta(one.rate)
        for one in found
        if one.rate is not None and one.name.endswith(f" vs {ORIGINAL}")
    }
    title = f"Each system against the Original, judged by {name}"
    return bar_chart(f"judged_{name}".replace(" ", "_"), title, "Δ = win% − lose%", each, INTERVALS)


def _examples(sample: Sample, each: int = 3) -> list[Example]:
    """PIT against the Original, as they come. Of a prompt its first line: the rest may be an article."""
    name, judged = next(iter(sample.judged.items()))
    found = []
    for contest, verdict in judged[f"{PIT} vs {ORIGINAL}"][:each]:
        prompt = contest.example.prompt[-1]["content"].strip().splitlines()[0]
        scores = verdict.scores or (float(verdict.value or 0), 0.0)
        title = f"PIT as it comes, judged by {name}"
        found.append(Example(title, prompt[:200], contest.second, contest.first, scores[1], scores[0]))
    return found


def _bars(sample: Sample, found: Mapping[str, Sequence[Judgement]]) -> list[Bar]:
    gap, *others = sample.accuracy.rows
    right = _percent(gap.accuracy)
    bars = [Bar("gap reward above chance", "interval > 50", str(right), (right.low or 0) > 50)]
    for row in others:
        if row.gap_reward_ahead is not None and row.judge in ("length", WORDS):
            ahead = _percent(row.gap_reward_ahead, sign=True)
            bars.append(
                Bar(f"gap reward above {row.judge}", "interval > 0", str(ahead), (ahead.low or 0) > 0)
            )
    for name, each in found.items():
        rate = next(one.rate for one in each if one.name == f"{PIT} vs {ORIGINAL}")
        if rate is not None:
            bars.append(Bar(f"PIT vs Original, {name}", "Δ > 0, interval too", str(rate), rate.low > 0))
    return bars
