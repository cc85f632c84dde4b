"""How far a run has come: what another process needs to go on with it as if nothing had happened."""

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.improve.events import CandidateFinish, Iteration, Scoring, StopReason, TokenCount, Usage

if TYPE_CHECKING:
    from app.improve.loop import ImprovementRun


@dataclass(frozen=True, slots=True)
class Progress:
    """A run after its draft, or after an iteration. `self_score` is what the gap reward gave the best
    response over itself, where it was asked; `ms` what the run has taken."""

    id: str
    created: int
    seed: int
    reference: str
    draft_finish_reason: CandidateFinish | None
    iterations: tuple[Iteration, ...]
    scoring: Scoring
    stop_reason: StopReason | None
    usage: Usage
    self_score: float | None
    ms: float


def take(run: "ImprovementRun") -> Progress:
    """The progress of a run between two iterations."""
    usage = deepcopy(run.usage)
    if not run.iterations:
        # What is generated beside the draft is generated again.
        usage.improve = TokenCount()
    return Progress(
        id=run.id,
        created=run.created,
        seed=run.seed,
        reference=run.reference,
        draft_finish_reason=run.draft_finish_reason,
        iterations=tuple(run.iterations),
        scoring=run.scoring,
        stop_reason=run.stop_reason,
        usage=usage,
        self_score=run.gate.self_scores.get(run.best) if run.gate else None,
        ms=run.ms(),
    )


def restore(run: "ImprovementRun", progress: Progress) -> None:
    """Make a run that has not begun the one that `progress` was taken of."""
    run.id, run.created, run.ms_before = progress.id, progress.created, progress.ms
    run.reference = run.best = progress.reference
    run.drafted, run.draft_finish_reason = True, progress.draft_finish_reason
    run.usage, run.budget.used = deepcopy(progress.usage), progress.usage.total_tokens
    for iteration in progress.iterations:
        run.iterations.append(iteration)
        run.advance(iteration)
    run.stop_reason = progress.stop_reason
    if run.gate and progress.self_score is not None:
        run.gate.self_scores[run.best] = progress.self_score
    if run.iterations and run.stop_reason is None and run.scoring != progress.scoring:
        # The gap reward went away in between: as where it fails during a run, the best so far stays.
        run.scoring, run.stop_reason = "skipped", "error"
    elif run.iterations:
        run.scoring = progress.scoring
