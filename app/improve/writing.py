"""Writing: the draft, and attempts at something better. What a generation reads and writes is counted in its
candidate, in the run's usage and in the budgets, even when it is cut short."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.errors import ContextTooLong
from app.improve import turns
from app.improve.events import Candidate, OutputDelta, TokenCount, Usage
from app.improve.gate import BudgetExhausted, TokenBudget
from app.improve.plan import Plan
from app.improve.streams import Begun
from app.improve.turns import Turn

Deltas = AsyncGenerator[OutputDelta, None]


class Writing:
    """The generations of one run. `usage` and `budget` are the run's, and grow."""

    def __init__(self, plan: Plan, budget: TokenBudget, usage: Usage) -> None:
        self.plan, self.budget, self.usage = plan, budget, usage
        self._beside: tuple[list[Candidate], list[Begun[OutputDelta]]] = ([], [])
        """The first iteration's candidates, where they are begun beside the draft."""

    def draft(self, draft: Candidate) -> Deltas:
        """y_0 from the policy."""
        return self._speak(turns.draft(self.plan.options.messages), draft, 0, self.budget)

    def begin_beside(self) -> None:
        """Begin the first iteration's candidates, which do not depend on the draft."""
        candidates = [Candidate(number) for number in range(self.plan.width)]
        attempts = [self._attempt(one, TokenBudget(None), "", 1) for one in candidates]
        self._beside = (candidates, [Begun(attempt) for attempt in attempts])

    async def end_beside(self) -> None:
        """Abort what was begun so and has not ended."""
        await asyncio.gather(*(attempt.close() for attempt in self._beside[1]))

    async def worst_case(self, baseline: str) -> int | None:
        """Tokens that an attempt's first generation may take at most; None when that does not fit the model's
        context or the token budget."""
        turn = self.plan.first_turn(baseline)
        prompt = await self.plan.prompts.prepare(turn)
        room = self.plan.prompts.room(self.plan.models.engine(turn.model), prompt)
        tokens = None if room is None else (prompt.tokens or 0) + room
        return tokens if tokens is not None and self.budget.fits(tokens) else None

    def attempts(self, worst_case: int, baseline: str, index: int) -> tuple[list[Candidate], list[Deltas]]:
        """The candidates of an iteration and their streams, some of which may have begun."""
        candidates, begun = self._beside
        if begun and index == 1:
            return candidates, [attempt.items() for attempt in begun]
        candidates = [Candidate(number) for number in range(self.plan.width)]
        shares = self.budget.shares(worst_case, self.plan.width)
        pairs = zip(candidates, shares, strict=True)
        return candidates, [self._attempt(*pair, baseline, index) for pair in pairs]

    async def _attempt(self, candidate: Candidate, budget: TokenBudget, baseline: str, index: int) -> Deltas:
        """All turns of the strategy for one candidate; the text of the last one is the candidate's."""
        attempt = self.plan.strategy(self.plan.options.messages, baseline)
        turn = next(attempt)
        try:
            while True:
                candidate.text, candidate.finish_reason = "", None
                async with aclosing(self._speak(turn, candidate, index, budget)) as deltas:
                    async for delta in deltas:
                        yield delta
                turn = attempt.send(candidate.text)
        except StopIteration:
            return
        except (BudgetExhausted, ContextTooLong):
            candidate.text, candidate.finish_reason = "", "token_budget"

    async def _speak(self, turn: Turn, candidate: Candidate, index: int, budget: TokenBudget) -> Deltas:
        """One generation."""
        engine = self.plan.models.engine(turn.model)
        prompt = await self.plan.prompts.prepare(turn)
        max_tokens = self.plan.prompts.room(engine, prompt)
        if max_tokens is None or not budget.fits((prompt.tokens or 0) + max_tokens):
            raise BudgetExhausted
        tokens = TokenCount(prompt_tokens=prompt.tokens or 0)
        sampling = self.plan.prompts.sampling(engine, max_tokens, index, candidate.number, turn.phase)
        try:
            async with aclosing(engine.generate(prompt, sampling)) as deltas:
                async for delta in deltas:
                    tokens.count(delta)
                    candidate.text += delta.text
                    candidate.finish_reason = delta.finish_reason
                    if delta.text:
                        yield OutputDelta(index, candidate.number, turn.phase, delta.text)
        finally:
            candidate.usage.add(tokens)
            if index:
                budget.used += tokens.total
                self.usage.improve.add(tokens)
            self.budget.used += tokens.total
