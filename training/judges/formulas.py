"""Judges that need no model and no people: the gold scorer of generated data, the distance to a human text,
and toxicity.

In the pipeline these are the judges of the data sets that training/configs ship. Deviation from the paper:
none of them is in it (docs/decisions/002).
"""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from training.data import PreferencePair
from training.errors import DataError
from training.helpdesk import gold_score
from training.judges.numbers import ScoreJudge
from training.judges.toxicity import ToxicityJudge


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance in characters: the fewest insertions, deletions and substitutions."""
    return Levenshtein.distance(first, second)


def nearest_distance(text: str, references: Sequence[str]) -> int:
    """Edit distance in characters to the nearest of the human rewrites. Raises `DataError` without one."""
    if not references:
        raise DataError("no human rewrite to measure the distance to")
    return min(edit_distance(text, reference) for reference in references)


def distance(example: PreferencePair, text: str) -> float:
    """Characters to the nearest human text of the example; white space at the ends does not count."""
    references = example.references or (example.chosen,)
    return float(nearest_distance(text.strip(), [reference.strip() for reference in references]))


def gold_judge() -> ScoreJudge:
    """The help desk's own scorer."""
    return ScoreJudge("gold", lambda rows: [gold_score(x.prompt[-1]["content"], text) for x, text in rows])


def edit_judge() -> ScoreJudge:
    """The response that is nearer to a human text wins."""
    return ScoreJudge("edit", lambda rows: [-distance(example, text) for example, text in rows])


def toxicity_judge(classifier: ToxicityJudge, training: str) -> ScoreJudge:
    """The less toxic response wins. `training` names what the classifier was fitted on (a content hash)."""

    def score(rows: Sequence[tuple[PreferencePair, str]]) -> list[float]:
        return [-probability for probability in classifier.probabilities([text for _, text in rows])]

    return ScoreJudge("toxicity", score, {"training": training})
