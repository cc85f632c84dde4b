"""Figures that show what RL is really doing: copying, length, truncation, the gold score where known.

A reward model's own score rises also when it is being hacked; these do not feed back into training.
"""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from training.config import RunConfig
from training.data import Message
from training.helpdesk import gold_score


def repeated_ngrams(ids: Sequence[int], size: int = 4) -> int:
    """How many n-grams of a response stood in it before; 0 for a response that never repeats itself."""
    ngrams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return len(ngrams) - len(set(ngrams))


class Monitor:
    """Computes means over a batch of samples."""

    def __init__(self, config: RunConfig) -> None:
        self.gold = config.data.format == "helpdesk"

    def figures(
        self,
        questions: Sequence[Sequence[Message]],
        responses: Sequence[str],
        references: Sequence[str],
        ended: Sequence[bool],
    ) -> dict[str, float]:
        """`words`, `truncated` (share), `gold` (points).

        Where there is a reference also `copied` (share equal to it) and `edit` (mean edit distance to it, as
        a share of the longer one's characters).
        """
        count = len(responses)
        pairs = [(y.strip(), ref.strip()) for y, ref in zip(responses, references, strict=True)]
        figures = {
            "words": sum(len(y.split()) for y in responses) / count,
            "truncated": 1 - sum(ended) / count,
        }
        if any(references):
            figures["copied"] = sum(y == ref for y, ref in pairs) / count
            figures["edit"] = sum(Levenshtein.normalized_distance(y, ref) for y, ref in pairs) / count
        if self.gold:
            scores = [gold_score(x[-1]["content"], y) for x, y in zip(questions, responses, strict=True)]
            figures["gold"] = sum(scores) / count
        return figures
