"""Is the next improver better than the live one? The comparison of two generations, and the decision.

After the last stage of a later generation both improvers rewrite the same held-out references, y_l of the
feedback and of the original data, with the temperature that is served and the same seed. The judge is gold
where the data has one (help desk), otherwise the live gap reward, which the next improver was not trained on.
Beyond the paper.

What the live gap reward cannot see is a change of taste that only the feedback holds: as a judge it is
careful, not fair (the live improver was trained to please it).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from training.calibrate import centred_gaps, sigmoid
from training.chat import improver_messages
from training.checkpoint import read_manifest
from training.generate import sample_responses
from training.helpdesk import gold_score
from training.judges import WinRate, bootstrap_mean
from training.lengths import fitting_pairs
from training.models import load_causal_lm, load_reading_tokenizer, load_reward_model, load_tokenizer
from training.paths import gap_reward_names
from training.split import one_a_key
from training.verdicts import Bar

if TYPE_CHECKING:
    from training.config import RunConfig
    from training.data import Message, PreferencePair
    from training.runtime import Worker

KINDS = ("feedback", "original")
Outcome = tuple[float, float]
"""How surely the next improver wins, and how surely it loses; the rest to 1 is a tie."""
Rows = Sequence[tuple[Sequence["Message"], str, str]]


@dataclass(frozen=True)
class Accuracy:
    """Share of held-out pairs that each gap reward puts in the right order; percentage points between them.

    `low` and `high` bound the 95% bootstrap interval of next − live.
    """

    n: int
    live: float
    next: float
    low: float
    high: float


def win_rate(outcomes: Sequence[Outcome], seed: int = 0) -> WinRate:
    """Win, lose and Δ in percent, with a paired bootstrap interval over the examples."""
    mean = bootstrap_mean([100 * (win - lose) for win, lose in outcomes], seed)
    win, lose = (100 * fmean(column) for column in zip(*outcomes, strict=True))
    return WinRate(mean.n, win, lose, mean.mean, mean.low, mean.high)


def decide(feedback: WinRate, original: WinRate, tolerance: float) -> list[Bar]:
    """The two conditions of a promotion; it is promoted when both hold.

    Better on the prompts of the feedback (Δ and its lower bound above 0), and not worse on the original ones
    (the lower bound above −`tolerance`, a difference of win rates between 0 and 1).
    """
    return [
        Bar(
            "feedback prompts",
            "Δ and its lower bound > 0",
            str(feedback),
            feedback.delta > 0 and feedback.low > 0,
        ),
        Bar(
            "original prompts",
            f"lower bound > {-100 * tolerance:g}",
            str(original),
            original.low > -100 * tolerance,
        ),
    ]


def outcomes_of_scores(live: Sequence[float], following: Sequence[float]) -> list[Outcome]:
    """The better score wins; equal ones tie."""
    return [(float(b > a), float(a > b)) for a, b in zip(live, following, strict=True)]


def outcomes_of_probabilities(
    probabilities: Sequence[float], live: Sequence[str], following: Sequence[str]
) -> list[Outcome]:
    """P(the next one's response is better); the same text is a tie whatever a judge says."""
    return [
        (0.0, 0.0) if a == b else (p, 1 - p) for p, a, b in zip(probabilities, live, following, strict=True)
    ]


def accuracy(live: Sequence[float], following: Sequence[float], seed: int = 0) -> Accuracy:
    """From each gap reward's P(chosen is better) of the same pairs; ½ is half a hit."""
    hits = [[0.5 if p == 0.5 else float(p > 0.5) for p in each] for each in (live, following)]
    difference = bootstrap_mean([100 * (b - a) for a, b in zip(*hits, strict=True)], seed)
    return Accuracy(difference.n, 100 * fmean(hits[0]), 100 * fmean(hits[1]), difference.low, difference.high)


def win_probabilities(config: RunConfig, run: Path, rows: Rows) -> list[float]:
    """P(first response is better than the second) for rows (prompt, first, second), by a run's calibrated gap
    rewards: the mean over an ensemble's members and over both orders."""
    sums = [0.0] * len(rows)
    names = gap_reward_names(config)
    both = [*rows, *((x, second, first) for x, first, second in rows)]
    for name in names:
        gap = read_manifest(run / name)["gap"]
        a, b = (float(gap["calibration"][key]) for key in ("a", "b"))
        turn = None if gap.get("reads") == "candidate" else config.improve_turn
        tokenizer, model = load_reading_tokenizer(run / name), load_reward_model(run / name, config.seed)
        found = [sigmoid(a * g + b) for g in centred_gaps([model], tokenizer, both, turn, gap["centering"])]
        for i in range(len(rows)):
            sums[i] += (found[i] + 1 - found[len(rows) + i]) / 2
    return [value / len(names) for value in sums]


def compare(worker: Worker) -> dict[str, Any]:
    """Write `comparison.jsonl`, a line for each example; return the figures as JSON-ready values."""
    config = worker.config
    assert config.generation is not None
    tokenizer = load_tokenizer(config.output / "improver")
    pairs = {
        kind: fitting_pairs(worker, tokenizer, f"{kind}/heldout", shuffled=True, report=False)
        for kind in KINDS
    }
    examples = [
        (kind, pair)
        for kind in KINDS
        for pair in one_a_key(pairs[kind], config.data.split_key)[: config.feedback.prompts]
    ]
    runs = {"live": config.generation.parent, "next": config.output}
    texts = {name: _improved(worker, run, [pair for _, pair in examples]) for name, run in runs.items()}
    if not worker.main:
        return {}
    judged = list(zip(examples, texts["live"], texts["next"], strict=True))
    gold = config.data.format == "helpdesk"
    figures: dict[str, Any] = {"judge": "gold" if gold else "live gap reward"}
    if gold:
        prompts = [pair.prompt[-1]["content"] for _, pair in examples]
        scores = [[gold_score(x, y) for x, y in zip(prompts, texts[name], strict=True)] for name in runs]
        outcomes = outcomes_of_scores(*scores)
    else:
        rows = [(pair.prompt, new, old) for (_, pair), old, new in judged]
        probabilities = win_probabilities(config, runs["live"], rows)
        outcomes = outcomes_of_probabilities(probabilities, texts["live"], texts["next"])
    for kind in KINDS:
        places = [i for i, (of, _) in enumerate(examples) if of == kind]
        figures[kind] = {"win_rate": asdict(win_rate([outcomes[i] for i in places], config.seed))}
        if gold:
            figures[kind]["gold"] = {
                name: fmean(each[i] for i in places) for name, each in zip(runs, scores, strict=True)
            }
        heldout = pairs[kind][: config.feedback.prompts]
        known = [(pair.prompt, pair.chosen, pair.rejected) for pair in heldout]
        before, after = (win_probabilities(config, run, known) for run in runs.values())
        figures[kind]["gap_reward_accuracy"] = asdict(accuracy(before, after, config.seed))
    _write_examples(config.output / "comparison.jsonl", judged, outcomes)
    return figures


def _improved(worker: Worker, run: Path, pairs: Sequence[PreferencePair]) -> list[str]:
    config = worker.config
    return sample_responses(
        worker,
        load_causal_lm(run / "improver"),
        load_tokenizer(run / "improver"),
        [improver_messages(pair.prompt, pair.rejected, config.improve_turn) for pair in pairs],
        temperature=config.sampling.improver_temperature,
        max_new_tokens=config.length.response,
        seed=config.seed,
    )


def _write_examples(
    path: Path,
    judged: Sequence[tuple[tuple[str, PreferencePair], str, str]],
    outcomes: Sequence[Outcome],
) -> None:
    with path.open("w", encoding="utf-8") as file:
        for ((kind, pair), live, following), (win, lose) in zip(judged, outcomes, strict=True):
            record = {
                "kind": kind, "id": pair.id, "prompt": list(pair.prompt), "reference": pair.rejected,
                "live": live, "next": following, "win": win, "lose": lose,
            }  # fmt: skip
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
