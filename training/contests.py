"""From the collected answers to the texts of each system, and which of them a judge compares.

In the pipeline this stands between asking and every judge that is not the data's own: a reward model, a
language model, people. The file of texts holds prompts too, so that it can be judged anywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.analysis import Answers
from training.answers import responses, until_first_rejection
from training.data import PreferencePair
from training.errors import ConfigError
from training.judges.protocol import Contest, contests
from training.synthetic import RUBRICS
from training.systems import BEST_OF, Plan, self_refine

Texts = Mapping[str, Sequence[str]]
"""System → its response to each example."""


def system_texts(pairs: Sequence[PreferencePair], answers: Answers, plan: Plan) -> dict[str, list[str]]:
    """`pairs` are complete examples. Loops stand after as many iterations as Self-Refine has; PIT as served
    ends at its first rejection."""
    count = min(plan.self_refine_iterations, plan.iterations)

    def after(system: str, iterations: int = count) -> list[str]:
        return [responses(answers[pair.id][system], iterations)[-1] for pair in pairs]

    served = [until_first_rejection(answers[pair.id]["pit_gated"]) for pair in pairs]
    found = {
        "PIT": after("pit_gated"),
        "PIT ungated": after("pit"),
        "PIT as served": [responses(record, count)[-1] for record in served],
        "y_w": [pair.chosen for pair in pairs],
        "y_l": [pair.rejected for pair in pairs],
    }
    if plan.from_draft:
        return found
    found["Original"] = [str(answers[pair.id]["original"]["text"]) for pair in pairs]
    found[f"best-of-{BEST_OF}"] = [str(answers[pair.id]["best_of_n"]["text"]) for pair in pairs]
    return found | {f"Self-Refine:{rubric}": after(self_refine(rubric)) for rubric in RUBRICS}


def comparisons(plan: Plan, wanted: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Which systems are compared; `wanted` narrows them by their names, "PIT vs Original".

    Raises:
        ConfigError: there is no such comparison.
    """
    if plan.from_draft:
        found = [("PIT", "y_l"), ("PIT ungated", "y_l"), ("PIT as served", "y_l"), ("y_w", "y_l")]
        found += [("PIT", "y_w")]
    else:
        refined, best = [f"Self-Refine:{rubric}" for rubric in RUBRICS], f"best-of-{BEST_OF}"
        found = [("Original", "y_w"), ("PIT", "Original"), ("PIT ungated", "Original")]
        found += [*((each, "Original") for each in refined), (best, "Original")]
        found += [("PIT", "y_w"), ("PIT", best), *(("PIT", each) for each in refined)]
    if wanted is None:
        return found
    names = {title(*each): each for each in found}
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ConfigError(f"evaluation.compare: no {unknown[0]!r}; there are {', '.join(map(repr, names))}")
    return [names[name] for name in wanted]


def title(first: str, second: str) -> str:
    return f"{first} vs {second}"


def make_contests(
    pairs: Sequence[PreferencePair], texts: Texts, compared: Sequence[tuple[str, str]]
) -> dict[str, list[Contest]]:
    """The contests of each comparison, by its name; one for each example."""
    return {title(a, b): contests(pairs, texts[a], texts[b]) for a, b in compared}


def write_texts(path: Path, pairs: Sequence[PreferencePair], texts: Texts) -> None:
    """JSON lines {"id", "prompt", "responses": {system: text}}, atomically: what `pit-train judge serve`
    takes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        for i, pair in enumerate(pairs):
            record = {
                "id": pair.id,
                "prompt": list(pair.prompt),
                "responses": {system: each[i] for system, each in texts.items()},
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    temporary.replace(path)
