"""The improvement loop: one async generator of typed events. Unary, streamed and chat answers are
renderings of it.

y_0 is the user's reference or the policy's draft. Every iteration starts from the best response so far and
asks for something better; what passes the gate becomes the best response, the rest is kept in the record.

- `scoring` "gap": never worse. `patience` rejections in a row end the run.
- "off": no gate. Every candidate is the next baseline, up to `max_iterations`.
- "skipped" (the caller asked for best effort, and no gap reward answers): one ungated iteration and no more,
  since iterating without a gate is what makes responses decay. If scoring fails during a run, the best
  response so far stays and the run ends with stop_reason "error".

Constraints (`keep`) hold in every mode: a candidate that breaks one is not scored and not accepted.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Literal

from app.errors import AppError, DeadlineExceeded, ScoringUnavailable
from app.improve import cost
from app.improve.edits import hunks
from app.improve.events import (
    Candidate,
    CandidateFinish,
    CandidateRejected,
    CandidateScored,
    Event,
    Iteration,
    IterationAccepted,
    IterationRejected,
    IterationStarted,
    Result,
    RunCompleted,
    RunCreated,
    RunFailed,
    Scoring,
    ScoringSkipped,
    StopReason,
    TokenCount,
    Usage,
)
from app.improve.gate import Gate, TokenBudget, Verdict, passes, same_text
from app.improve.keep import Violation
from app.improve.options import Models, Options, draw_seed
from app.improve.plan import Plan
from app.improve.progress import Progress, restore, take
from app.improve.streams import Deadline, merge, within
from app.improve.writing import Writing


class ImprovementRun:
    """One run. Make it with `start` (which refuses what cannot be served), then read `events()` once."""

    lower = cost.ADVICE

    @classmethod
    async def start(cls, models: Models, options: Options) -> "ImprovementRun":
        """Raises what `Plan.make` raises: `BadRequest`, `ContextTooLong`, `ScoringUnavailable`."""
        if options.seed is None:
            options = replace(options, seed=draw_seed())
        return cls(await Plan.make(models, options))

    @classmethod
    async def resume(cls, models: Models, options: Options, progress: Progress) -> "ImprovementRun":
        """A run that goes on where another one of the same options was: from the same seed the same result,
        as if it had not been interrupted. Raises as `start` does."""
        run = cls(await Plan.make(models, replace(options, seed=progress.seed)))
        restore(run, progress)
        return run

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        options = plan.options
        self.models, self.options = plan.models, options
        assert options.seed is not None
        self.seed = options.seed
        self.id = f"imp_{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.gate: Gate | None = self.plan.gate()
        self.scoring: Scoring = self.plan.scoring
        self.budget = TokenBudget(options.max_total_tokens)
        self.usage = Usage()
        self.reference = self.best = options.reference or ""
        self.iterations: list[Iteration] = []
        self.rejections = 0
        self.draft_finish_reason: CandidateFinish | None = None
        self.stop_reason: StopReason | None = None
        self.deadline = Deadline()
        self.drafted = options.reference is not None
        self.ms_before = 0.0

    async def worst_case(self, *, exact: bool) -> int:
        """As `cost.worst_case`."""
        return await cost.worst_case(self.plan, exact=exact)

    @property
    def tokens_used(self) -> int:
        """Tokens read and written so far."""
        return self.usage.total_tokens

    def cancel(self) -> None:
        """End the run: what is being generated is aborted, and the best response so far is the result, with
        stop_reason "cancelled"."""
        self.deadline.cut()

    def progress(self) -> Progress:
        """How far it has come. Ask while an event says that an iteration starts or has ended: in between,
        the tokens of what is being generated are in it already."""
        return take(self)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Run the loop. Close the generator to cancel the run: every generation in flight is aborted."""
        self.started = time.perf_counter()
        self._writing = Writing(self.plan, self.budget, self.usage)
        limit = self.options.deadline_s
        if limit is not None and not self.deadline.was_cut:
            self.deadline.at = asyncio.get_running_loop().time() + limit - self.ms_before / 1000
        yield RunCreated(
            self.id, self.created, self.options.strategy, self.scoring, self.seed, self.options.reference
        )
        if self.plan.scoring_problem:
            yield ScoringSkipped(0, self.plan.scoring_problem)
        try:
            if not self.drafted:
                if self.plan.drafts_beside:
                    self._writing.begin_beside()
                async with aclosing(self._draft()) as deltas:
                    async for delta in deltas:
                        yield delta
            if self.stop_reason:
                await self._writing.end_beside()  # so that what they have taken is in the usage
            while self.stop_reason is None:
                async with aclosing(self._iterate(len(self.iterations) + 1)) as events:
                    async for event in events:
                        yield event
        except AppError as error:
            yield RunFailed(error)
        else:
            yield RunCompleted(self._result(self.stop_reason))
        finally:
            await self._writing.end_beside()

    async def _draft(self) -> AsyncGenerator[Event, None]:
        """y_0 from the policy. Without it there is nothing to fall back on: a deadline here fails the run.
        Where the run is cancelled, y_0 is what was written."""
        draft = Candidate(0, usage=self.usage.draft)
        try:
            async with aclosing(within(self._writing.draft(draft), self.deadline)) as deltas:
                async for delta in deltas:
                    yield delta
        except TimeoutError:
            if not self.deadline.was_cut:
                raise DeadlineExceeded(
                    f"The deadline of {self.options.deadline_s:g} s passed while the first response was"
                    " drafted. Raise deadline_ms, lower max_tokens, or send a reference.",
                    param="deadline_ms",
                ) from None
            self._cut_short([draft])
        self.reference = self.best = draft.text
        self.draft_finish_reason = draft.finish_reason

    async def _iterate(self, index: int) -> AsyncGenerator[Event, None]:
        """One iteration: candidates side by side, their constraints, one batch of scores, the gate."""
        baseline, started = self.best, time.perf_counter()
        if self.deadline.passed:
            self._cut_short([])
            return
        worst_case = await self._writing.worst_case(baseline)
        if worst_case is None:
            self.stop_reason = "token_budget"
            return
        yield IterationStarted(index, baseline)
        candidates, attempts = self._writing.attempts(worst_case, baseline, index)
        verdicts: list[Verdict | None] = [None] * self.plan.width
        score_tokens = 0
        try:
            async with aclosing(within(merge(attempts), self.deadline)) as deltas:
                async for delta in deltas:
                    yield delta
            for rejected in self._check(candidates, index):
                yield rejected
            if self.gate:
                async with self.deadline.limit():
                    verdicts, score_tokens = await self._judge(self.gate, candidates, baseline)
                if self.scoring == "skipped":
                    yield ScoringSkipped(index, "The gap reward failed: the best response so far stays.")
        except TimeoutError:
            self._cut_short(candidates)
        for candidate, verdict in zip(candidates, verdicts, strict=True):
            if verdict:
                yield CandidateScored(index, candidate.number, verdict.gap, verdict.win_probability)
        ms = 1000 * (time.perf_counter() - started)
        iteration = self._conclude(index, candidates, verdicts, score_tokens, ms)
        yield IterationAccepted(iteration) if iteration.accepted else IterationRejected(iteration)

    def _conclude(
        self,
        index: int,
        candidates: list[Candidate],
        verdicts: list[Verdict | None],
        score_tokens: int,
        ms: float,
    ) -> Iteration:
        """Choose among the candidates, let the best pass or not, and decide how the run goes on."""
        baseline = self.best
        chosen = max(candidates, key=lambda c: self._rank(c, verdicts[c.number]))
        verdict = verdicts[chosen.number]
        tokens = TokenCount()
        for candidate in candidates:
            tokens.add(candidate.usage)
        iteration = Iteration(
            index=index,
            text=chosen.text,
            gap=verdict.gap if verdict else None,
            win_probability=verdict.win_probability if verdict else None,
            accepted=self._accepts(chosen, baseline, verdict),
            finish_reason=chosen.finish_reason,
            candidate=chosen.number,
            usage=tokens,
            score_tokens=score_tokens,
            ms=ms,
            violations=chosen.violations,
            edits=hunks(baseline, chosen.text) if self.options.edits else None,
        )
        self.iterations.append(iteration)
        self.advance(iteration)
        return iteration

    async def _judge(
        self, gate: Gate, candidates: list[Candidate], baseline: str
    ) -> tuple[list[Verdict | None], int]:
        """Score all candidates in one batch. A failure is an error only where scoring is required."""
        found: list[Verdict | None] = [None] * len(candidates)
        written = [c for c in candidates if c.text.strip() and not c.violations]
        texts = [candidate.text for candidate in written]
        try:
            limited = self.budget.limit is not None
            if limited and not self.budget.fits(await gate.tokens_needed(texts, baseline)):
                self.stop_reason = "token_budget"
                return found, 0
            verdicts, tokens = await gate.judge(texts, baseline)
        except AppError as error:
            if self.options.scoring == "required":
                if isinstance(error, ScoringUnavailable):
                    raise
                raise ScoringUnavailable(
                    "Scoring is required, and the gap reward could not read this response."
                    " Shorten the conversation, or send scoring: best_effort."
                ) from error
            self.scoring, self.stop_reason = "skipped", "error"
            return found, 0
        self.usage.score.prompt_tokens += tokens
        self.budget.used += tokens
        for candidate, verdict in zip(written, verdicts, strict=True):
            found[candidate.number] = verdict
        return found, tokens

    def _check(self, candidates: list[Candidate], index: int) -> Iterator[CandidateRejected]:
        """Note which constraints the candidates break."""
        for candidate in candidates:
            if self.plan.checks and candidate.text.strip():
                candidate.violations = self.plan.checks.violations(candidate.text, self.reference)
                if candidate.violations:
                    yield CandidateRejected(index, candidate.number, candidate.violations)

    def _accepts(self, chosen: Candidate, baseline: str, verdict: Verdict | None) -> bool:
        if chosen.violations:
            return False
        if verdict is None and (self.gate is not None or chosen.finish_reason in ("deadline", "cancelled")):
            return False
        return passes(chosen.text, baseline, verdict, self.options.min_win_probability)

    def advance(self, iteration: Iteration) -> None:
        """What an iteration means for the next: the new best response, the rejections in a row, whether to
        stop."""
        if iteration.accepted:
            self.best, self.rejections = iteration.text, 0
        else:
            self.rejections += 1
        if self.stop_reason:
            return
        if iteration.finish_reason == "token_budget":
            self.stop_reason = "token_budget"
        elif self._impatient():
            by_gap = self.options.patience == 1 and not iteration.violations
            self.stop_reason = "gap" if by_gap else "patience"
        elif iteration.index >= self.plan.iteration_limit:
            self.stop_reason = "max_iterations"

    def _impatient(self) -> bool:
        judged = self.gate is not None or self.plan.checks is not None
        return judged and self.rejections >= self.options.patience and self.options.strategy != "best_of_n"

    def _cut_short(self, candidates: list[Candidate]) -> None:
        reason: Literal["cancelled", "deadline"] = "cancelled" if self.deadline.was_cut else "deadline"
        self.stop_reason = reason
        for candidate in candidates:
            candidate.finish_reason = candidate.finish_reason or reason

    @staticmethod
    def _rank(candidate: Candidate, verdict: Verdict | None) -> tuple[bool, bool, float]:
        """Scored ones by their score, then those that say something, the first of equals."""
        probability = verdict.win_probability if verdict else -1.0
        return bool(candidate.text.strip()), not candidate.violations, probability

    def _result(self, stop_reason: StopReason | None) -> Result:
        assert stop_reason is not None
        return Result(
            id=self.id,
            created=self.created,
            strategy=self.options.strategy,
            response=self.best,
            improved=not same_text(self.best, self.reference),
            reference=self.reference,
            iterations=self.iterations,
            stop_reason=stop_reason,
            usage=self.usage,
            models=self.plan.model_names(),
            identities=self.plan.identities(),
            scoring=self.scoring,
            seed=self.seed,
            ms=self.ms(),
            violations=self._broken(),
            edits=hunks(self.reference, self.best) if self.options.edits else None,
        )

    def ms(self) -> float:
        """Milliseconds that it has taken."""
        return self.ms_before + 1000 * (time.perf_counter() - self.started)

    def _broken(self) -> tuple[Violation, ...]:
        """The constraints that the final response breaks: what was accepted breaks none, a reference may."""
        return self.plan.checks.violations(self.best, self.reference) if self.plan.checks else ()
