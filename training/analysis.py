"""From the collected answers to every figure of the report, for data with a gold scorer.

In the pipeline this follows asking (systems.py) and precedes printing (report.py). What counts as "PIT":

- ungated: every new candidate is the next reference, as in the paper;
- gated: a candidate must pass the calibrated gap, as users get it. In the comparisons "PIT" is this one,
  after as many iterations as Self-Refine has (3 by default, which is the server's own default).

Self-Refine's rubric is chosen at each iteration count by its own mean score on these very examples: to the
advantage of the baseline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from training.answers import Record, responses, tokens_after, until_first_rejection
from training.data import PreferencePair
from training.helpdesk import gold_details
from training.synthetic import RUBRICS
from training.systems import BEST_OF, Plan, scored_order, self_refine
from training.verdicts import (
    Agreement,
    Comparison,
    Row,
    agreement,
    compare_systems,
    expected_calibration_error,
    iteration_rows,
    scored_candidates,
)

Answers = Mapping[str, Mapping[str, Record]]
"""Example id → system → record."""


@dataclass(frozen=True)
class Spent:
    """Mean tokens of a system for one prompt, without the response that it started from, and what they
    bought."""

    name: str
    written: float
    read: float
    cached: float
    score: float

    @property
    def total(self) -> float:
        return self.written + self.read


@dataclass(frozen=True)
class Content:
    """What the responses of a system say, by the gold parser.

    `right`: of the sentences that state a fact, the share (percent) whose value is right (None: no such
    sentence); `repeated`: sentences a response; `coverage`: percent of what was asked.
    """

    name: str
    right: float | None
    facts: int
    repeated: float
    coverage: float
    words: float


@dataclass(frozen=True)
class Figures:
    """Everything the report shows."""

    examples: int
    left_out: dict[str, int]
    headline: int
    comparisons: list[Comparison]
    loops: dict[str, list[Row]]
    best_rubric: list[str]
    agreements: dict[str, Agreement | None]
    label: dict[str, float]
    spent: list[Spent]
    content: list[Content]
    stops: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def complete(
    pairs: Sequence[PreferencePair], answers: Answers, plan: Plan
) -> tuple[list[PreferencePair], dict[str, int]]:
    """The examples that every system answered, and how often each reason left one out."""
    kept, left_out = [], Counter[str]()
    for pair in pairs:
        records = answers.get(pair.id, {})
        reasons = [f"{s}: {records[s]['refused']}" for s in records if "refused" in records[s]]
        if reasons:
            left_out[reasons[0]] += 1
        elif any(system not in records for system in plan.systems()):
            left_out["no answer (run the command again to ask anew)"] += 1
        else:
            kept.append(pair)
    return kept, dict(left_out)


class Analysis:
    """Scores every response once; `figures()` puts the results together. `pairs` are complete examples."""

    def __init__(self, pairs: Sequence[PreferencePair], answers: Answers, plan: Plan) -> None:
        self.pairs, self.answers, self.plan = pairs, answers, plan
        self.headline = min(plan.self_refine_iterations, plan.iterations)
        self._details: dict[tuple[str, str], dict[str, float]] = {}

    def records(self, system: str) -> list[Record]:
        return [self.answers[pair.id][system] for pair in self.pairs]

    def details(self, pair: PreferencePair, text: str) -> dict[str, float]:
        key = (pair.id, text)
        if key not in self._details:
            self._details[key] = gold_details(pair.prompt[-1]["content"], text)
        return self._details[key]

    def score(self, pair: PreferencePair, text: str) -> float:
        return self.details(pair, text)["score"]

    def scores(self, texts: Sequence[str]) -> list[float]:
        return [self.score(pair, text) for pair, text in zip(self.pairs, texts, strict=True)]

    def states(self, system: str, iterations: int) -> list[list[str]]:
        """Responses after 0, 1, … iterations: shape (iterations + 1, n)."""
        each = [responses(record, iterations) for record in self.records(system)]
        return [list(column) for column in zip(*each, strict=True)]

    @cached_property
    def loops(self) -> dict[str, list[list[str]]]:
        """`states` of every loop by its name."""
        found = {system: self.states(system, self.plan.iterations) for system in ("pit", "pit_gated")}
        refined = {self_refine(rubric): self.plan.self_refine_iterations for rubric in RUBRICS}
        return found | {system: self.states(system, count) for system, count in refined.items()}

    @cached_property
    def best_rubric(self) -> list[str]:
        """The Self-Refine system with the highest mean score after 1, 2, … iterations."""
        names = [self_refine(rubric) for rubric in RUBRICS]
        return [
            max(names, key=lambda name: float(np.mean(self.scores(self.loops[name][i]))))
            for i in range(1, self.plan.self_refine_iterations + 1)
        ]

    def figures(self) -> Figures:
        rows = {
            name: iteration_rows(
                [self.scores(texts) for texts in states], self.records(name), gated=name == "pit_gated"
            )
            for name, states in self.loops.items()
        }
        return Figures(
            examples=len(self.pairs),
            left_out={},
            headline=self.headline,
            comparisons=self.comparisons(),
            loops=rows,
            best_rubric=self.best_rubric,
            agreements=self.agreements(),
            label=self.label(),
            spent=self.spent(),
            content=self.content(),
            stops=dict(Counter(str(record["stop_reason"]) for record in self.records("pit_gated"))),
            seconds={s: float(np.mean([r["seconds"] for r in self.records(s)])) for s in self.plan.systems()},
        )

    # ---------------------------------------- comparisons

    @cached_property
    def final_texts(self) -> dict[str, list[str]]:
        k = self.headline
        patience_1 = [
            responses(until_first_rejection(record), self.plan.iterations)[-1]
            for record in self.records("pit_gated")
        ]
        return {
            "Original": [record["text"] for record in self.records("original")],
            "y_w": [pair.chosen for pair in self.pairs],
            "y_l": [pair.rejected for pair in self.pairs],
            "PIT": self.loops["pit_gated"][k],
            "PIT ungated": self.loops["pit"][k],
            f"PIT, patience 1, at most {self.plan.iterations}": patience_1,
            "Self-Refine": self.loops[self.best_rubric[k - 1]][k],
            f"best-of-{BEST_OF}": [record["text"] for record in self.records("best_of_n")],
        }

    def comparisons(self) -> list[Comparison]:
        named = [
            ("Original", "y_w"), ("Original", "y_l"), ("PIT", "Original"), ("PIT ungated", "Original"),
            ("Self-Refine", "Original"), (f"best-of-{BEST_OF}", "Original"), ("PIT", "y_w"),
            ("PIT", f"best-of-{BEST_OF}"), ("PIT ungated", f"best-of-{BEST_OF}"),
        ]  # fmt: skip
        texts = self.final_texts
        found = [self._compare(f"{one} vs {other}", texts[one], texts[other]) for one, other in named]
        for i, refined in enumerate(self.best_rubric[: self.headline], 1):
            for name, system in (("PIT", "pit_gated"), ("PIT ungated", "pit")):
                title = f"{name} vs Self-Refine, {i} iteration{'s' if i > 1 else ''}"
                found.append(self._compare(title, self.loops[system][i], self.loops[refined][i]))
        return found

    def _compare(self, name: str, texts: Sequence[str], baseline: Sequence[str]) -> Comparison:
        return compare_systems(name, self.scores(texts), self.scores(baseline), texts, baseline)

    # ---------------------------------------- gap reward

    def agreements(self) -> dict[str, Agreement | None]:
        """With gold: on held-out pairs, and on what PIT wrote against what it was given."""
        probabilities = [record["win_probability"] for record in self.records("score")]
        differences = []
        for pair in self.pairs:
            candidate, baseline = (self.score(pair, text) for text in scored_order(pair))
            differences.append(candidate - baseline)
        found = {"held-out pairs": agreement(probabilities, differences)}
        for title, count in (("PIT output and its reference", None), ("the first iteration of these", 1)):
            scored = [
                one
                for pair, record in zip(self.pairs, self.records("pit_gated"), strict=True)
                for one in scored_candidates(record, partial(self.score, pair), count)
            ]
            found[title] = agreement([p for p, _ in scored], [d for _, d in scored])
        return found

    def label(self) -> dict[str, float]:
        """Accuracy and calibration error against the noisy label of the held-out pairs, and the label
        against gold."""
        probabilities = [record["win_probability"] for record in self.records("score")]
        first = [scored_order(pair)[0] == pair.chosen for pair in self.pairs]
        gold = [self.score(p, p.chosen) - self.score(p, p.rejected) for p in self.pairs]
        untied = [difference > 0 for difference in gold if difference]
        hits = [(p > 0.5) == better for p, better in zip(probabilities, first, strict=True)]
        found = {
            "pairs": float(len(first)),
            "accuracy": float(np.mean(hits)),
            "ece": expected_calibration_error(probabilities, first),
        }
        return found | ({"label_agrees_with_gold": float(np.mean(untied))} if untied else {})

    # ---------------------------------------- cost, content

    def spent(self) -> list[Spent]:
        """Tokens of the original, of each loop after each iteration, and of best-of-n."""
        original = self.records("original")
        found = [self._spent("Original", [r["tokens"] for r in original], [str(r["text"]) for r in original])]
        for system, states in self.loops.items():
            for i in range(1, len(states)):
                tokens = [tokens_after(record, i) for record in self.records(system)]
                found.append(self._spent(f"{system}, {i}", tokens, states[i]))
        patience = [until_first_rejection(record) for record in self.records("pit_gated")]
        name = f"PIT, patience 1, at most {self.plan.iterations}"
        tokens = [tokens_after(record, self.plan.iterations) for record in patience]
        found.append(self._spent(name, tokens, self.final_texts[name]))
        best = self.records("best_of_n")
        tokens = [tokens_after(record, 1) for record in best]
        return [*found, self._spent(f"best-of-{BEST_OF}", tokens, [str(r["text"]) for r in best])]

    def _spent(self, name: str, tokens: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> Spent:
        means = {
            key: float(np.mean([one[key] for one in tokens])) for key in ("completion", "prompt", "cached")
        }
        score = float(np.mean(self.scores(texts)))
        return Spent(name, means["completion"], means["prompt"], means["cached"], score)

    def content(self) -> list[Content]:
        return [self._content(name, texts) for name, texts in self.final_texts.items()]

    def _content(self, name: str, texts: Sequence[str]) -> Content:
        details = [self.details(pair, text) for pair, text in zip(self.pairs, texts, strict=True)]
        right, wrong = sum(d["fact"] + d["unasked"] for d in details), sum(d["wrong"] for d in details)
        return Content(
            name,
            right=100 * right / (right + wrong) if right + wrong else None,
            facts=int(right + wrong),
            repeated=float(np.mean([d["repeated"] for d in details])),
            coverage=100 * float(np.mean([d["coverage"] for d in details])),
            words=float(np.mean([len(text.split()) for text in texts])),
        )
