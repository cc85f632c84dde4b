"""The laws that hold for every run of the improvement loop, whatever is asked for."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engines.base import Delta, Prompt, Sampling
from app.errors import BadRequest, ContextTooLong, DeadlineExceeded, ScoringUnavailable
from app.improve.events import (
    CandidateRejected,
    CandidateScored,
    Event,
    IterationAccepted,
    IterationRejected,
    IterationStarted,
    Result,
    RunCompleted,
    RunCreated,
    RunFailed,
    ScoringSkipped,
    TokenCount,
)
from app.improve.gate import same_text
from app.improve.keep import Checks, Keep, LengthRatio
from app.improve.loop import ImprovementRun
from app.improve.options import Models, Options
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.loops import QUESTION, collect

any_keep = st.one_of(
    st.none(),
    st.builds(
        Keep,
        quotes=st.sampled_from([(), ("lamp",), ("the", "is")]),
        length_ratio=st.one_of(
            st.none(),
            st.builds(
                LengthRatio,
                min=st.sampled_from([None, 0.5]),
                max=st.sampled_from([2.0, 6.0]),
                unit=st.sampled_from(["characters", "words"]),
            ),
        ),
    ),
)
any_options = st.builds(
    Options,
    messages=st.just(QUESTION),
    reference=st.one_of(st.none(), st.just("no"), st.just("the lamp is red")),
    strategy=st.sampled_from(["pit", "self_refine", "best_of_n"]),
    max_iterations=st.integers(1, 6),
    candidates=st.integers(1, 4),
    scoring=st.sampled_from(["best_effort", "required"]),
    min_win_probability=st.floats(0.5, 1),
    patience=st.integers(1, 4),
    max_total_tokens=st.one_of(st.none(), st.integers(1, 600)),
    max_tokens=st.one_of(st.none(), st.integers(1, 40)),
    seed=st.integers(0, 10_000),
    keep=any_keep,
    edits=st.booleans(),
)
REFUSALS = (BadRequest, ContextTooLong, ScoringUnavailable)


@settings(max_examples=300, deadline=None)
@given(chosen=any_options, centering=st.sampled_from(["self", "antisymmetric"]))
def test_laws_of_a_gated_run(chosen: Options, centering: Any) -> None:
    """With the gate on: the score never falls, budgets hold, and the events tell one consistent story."""
    scorer = FakeScorer()
    models = fake_models(scorer=scorer)
    models = replace(models, calibration=replace(models.calibration, centering=centering))
    try:
        events = asyncio.run(collect(models, chosen))
    except REFUSALS:
        return
    assert isinstance(events[0], RunCreated)
    assert isinstance(events[-1], RunCompleted)
    result = events[-1].result
    value = scorer.value(result.reference)
    best = result.reference
    for iteration in result.iterations:
        if iteration.accepted:
            assert iteration.win_probability is not None
            assert iteration.win_probability >= chosen.min_win_probability
            assert scorer.value(iteration.text) >= value, (
                "an accepted response scores lower than the one before"
            )
            assert not same_text(iteration.text, best)
            value, best = scorer.value(iteration.text), iteration.text
    assert result.response == best
    assert result.improved == (not same_text(best, result.reference))
    assert len(result.iterations) <= (1 if chosen.strategy == "best_of_n" else chosen.max_iterations)
    assert_well_formed(events, result)
    assert_kept(chosen, events, result)


def assert_well_formed(events: list[Event], result: Result) -> None:
    """Every iteration that started is closed once, in order, and the sums of tokens agree."""
    starts = [e.index for e in events if isinstance(e, IterationStarted)]
    ends = [e.iteration for e in events if isinstance(e, IterationAccepted | IterationRejected)]
    assert starts == [i.index for i in ends] == list(range(1, len(ends) + 1))
    assert ends == result.iterations
    improved = TokenCount()
    for iteration in result.iterations:
        improved.add(iteration.usage)
    assert improved == result.usage.improve
    assert sum(i.score_tokens for i in result.iterations) == result.usage.score.total


def assert_kept(chosen: Options, events: list[Event], result: Result) -> None:
    """What breaks a constraint is never scored and never accepted, and says so."""
    if chosen.keep is None:
        assert not any(isinstance(e, CandidateRejected) for e in events)
        return
    checks = Checks(chosen.keep, None)
    for iteration in result.iterations:
        if iteration.text.strip():
            assert iteration.violations == checks.violations(iteration.text, result.reference)
        assert not (iteration.violations and (iteration.accepted or iteration.gap is not None))
    if result.improved:
        assert not result.violations
    broken = {(e.index, e.candidate) for e in events if isinstance(e, CandidateRejected)}
    assert not broken & {(e.index, e.candidate) for e in events if isinstance(e, CandidateScored)}


@dataclass
class JitteryEngine(FakeEngine):
    """Lets the others go first, as often as chance has it: candidates come in any order."""

    chance: Callable[[], int] = lambda: 0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        async with aclosing(super().generate(prompt, sampling)) as deltas:
            async for delta in deltas:
                for _ in range(self.chance()):
                    await asyncio.sleep(0)
                yield delta


@settings(max_examples=150, deadline=None)
@given(chosen=any_options, orders=st.tuples(st.integers(), st.integers()))
def test_the_same_seed_gives_the_same_run(chosen: Options, orders: tuple[int, int]) -> None:
    """Reproducible runs: nothing but the seed and the request decides the texts, whichever candidate is
    faster, under a token budget too."""

    def outcome(order: int) -> Any:
        source = random.Random(order)
        policy, improver = (JitteryEngine(chance=lambda: source.randrange(6)) for _ in range(2))
        try:
            events = asyncio.run(collect(fake_models(policy, improver), chosen))
        except REFUSALS:
            return None
        assert isinstance(events[-1], RunCompleted)
        found = events[-1].result
        return found.response, found.stop_reason, found.usage, [replace(i, ms=0) for i in found.iterations]

    assert outcome(orders[0]) == outcome(orders[1])


async def stopped_run(models: Models, chosen: Options, cancel_after: int, close_after: int) -> ImprovementRun:
    """A run that is cancelled, or whose caller leaves, after so many events (0: never)."""
    run = await ImprovementRun.start(models, chosen)
    number = 0
    async with aclosing(run.events()) as events:
        async for event in events:
            number += 1
            if number == cancel_after:
                run.cancel()
            if number == close_after:
                break
            if isinstance(event, RunFailed) and not isinstance(event.error, DeadlineExceeded):
                raise event.error
    return run


@settings(max_examples=300, deadline=None)
@given(
    chosen=any_options,
    scoring=st.sampled_from(["off", "best_effort", "required"]),
    cancel_after=st.integers(0, 60),
    close_after=st.integers(0, 90),
    deadline_s=st.one_of(st.none(), st.none(), st.floats(0.001, 0.01)),
    fails_from=st.one_of(st.none(), st.integers(0, 3)),
)
def test_usage_is_what_the_engines_counted_and_never_over_the_budget(
    chosen: Options,
    scoring: Any,
    cancel_after: int,
    close_after: int,
    deadline_s: float | None,
    fails_from: int | None,
) -> None:
    """For every strategy and every way a run ends: cancelled, out of time, left by its client, scoring that
    fails. Nothing goes on afterwards."""
    policy, improver, scorer = FakeEngine(), FakeEngine(), FakeScorer()
    if deadline_s:
        policy.delay_s = improver.delay_s = 0.0005
    if fails_from is not None:
        scorer.failure, scorer.fail_from_call = ScoringUnavailable("Down."), fails_from
    chosen = replace(chosen, scoring=scoring, deadline_s=deadline_s)
    models = fake_models(policy=policy, improver=improver, scorer=scorer)
    try:
        run = asyncio.run(stopped_run(models, chosen, cancel_after, close_after))
    except REFUSALS:
        return
    generated = TokenCount()
    generated.add(run.usage.draft)
    generated.add(run.usage.improve)
    assert generated.prompt_tokens == policy.prompt_tokens + improver.prompt_tokens
    assert generated.completion_tokens == policy.completion_tokens + improver.completion_tokens
    assert run.usage.score.total == scorer.tokens
    if chosen.max_total_tokens is not None:
        assert run.usage.total_tokens <= chosen.max_total_tokens
        assert run.budget.used == run.usage.total_tokens
    assert (policy.running, improver.running) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(chosen=any_options, down=st.booleans(), fails_from=st.integers(0, 3))
def test_scoring_that_does_not_happen_is_said(chosen: Options, down: bool, fails_from: int) -> None:
    """`scoring: skipped` and the event go together; where scoring is required, nothing is skipped."""
    scorer = FakeScorer(failure=ScoringUnavailable("Down."), fail_from_call=fails_from)
    if down:
        scorer.down = ScoringUnavailable("Down.")
    models = fake_models(scorer=scorer)
    try:
        events = asyncio.run(collect(models, chosen))
    except REFUSALS:
        if down and chosen.scoring == "required":
            assert isinstance(models.improver, FakeEngine) and isinstance(models.policy, FakeEngine)
            assert models.improver.started == models.policy.started == 0
        return
    skipped = [e for e in events if isinstance(e, ScoringSkipped)]
    if isinstance(events[-1], RunFailed):
        assert (chosen.scoring, skipped) == ("required", [])
        return
    assert isinstance(events[-1], RunCompleted)
    assert len(skipped) == (events[-1].result.scoring == "skipped")
