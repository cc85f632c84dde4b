"""What a run may cost at most, in tokens, before it starts: the draft, every turn of every candidate of every
iteration, and the gap reward's reading of them.

Prompts are counted with the longest baseline that can stand in them. A text that a model reads is taken to
have as many tokens as when it was written, and the gap reward to read as many as the model that improves.
"""

from dataclasses import dataclass

from app.engines.base import Engine
from app.engines.chat import MESSAGE_TOKENS
from app.improve import turns
from app.improve.plan import Plan
from app.improve.prompts import DEFAULT_MAX_TOKENS
from app.improve.turns import Turn

ADVICE = "Lower max_iterations, candidates or max_tokens, or set max_total_tokens."


@dataclass(frozen=True, slots=True)
class _Generation:
    """One turn of an attempt: its prompt without the texts that it will hold, and its longest response."""

    prompt: int
    room: int
    context: int


async def worst_case(plan: Plan, *, exact: bool) -> int:
    """Tokens that this run may read and write at most. `exact`: with its prompts tokenized, else with one
    token for each of their bytes. Raises `BadRequest` and `EngineFailed`."""
    options, limit = plan.options, plan.options.max_total_tokens
    first = plan.first_turn("")
    if options.reference is None:
        turn = turns.draft(options.messages)
        engine = plan.models.engine(turn.model)
        baseline = _room(plan, engine)
        total = min(engine.context_length, await plan.prompts.tokens(turn, exact=exact) + baseline)
    else:
        chat = [*options.messages, turns.assistant(options.reference), turns.user(plan.models.improve_turn)]
        bare = [*options.messages, turns.assistant(""), turns.user(plan.models.improve_turn)]
        with_it = await plan.prompts.tokens(Turn(first.model, chat, first.phase), exact=exact)
        without = await plan.prompts.tokens(Turn(first.model, bare, first.phase), exact=exact)
        baseline, total = max(0, with_it - without), 0
    attempt = await _attempt(plan, exact)
    total += _iteration(plan, attempt, baseline)
    if plan.iteration_limit > 1:
        longest = max(baseline, attempt[-1].room)
        total += (plan.iteration_limit - 1) * _iteration(plan, attempt, longest)
    return total if limit is None else min(total, limit)


async def _attempt(plan: Plan, exact: bool) -> list[_Generation]:
    """The turns of one attempt, as though every text in them were empty."""
    found: list[_Generation] = []
    attempt = plan.strategy(plan.options.messages, "")
    turn = next(attempt)
    while True:
        engine = plan.models.engine(turn.model)
        tokens = await plan.prompts.tokens(turn, exact=exact)
        found.append(_Generation(tokens, _room(plan, engine), engine.context_length))
        try:
            turn = attempt.send("")
        except StopIteration:
            return found


def _iteration(plan: Plan, attempt: list[_Generation], baseline: int) -> int:
    """Tokens of one iteration at most, whose baseline has so many."""
    each = written = 0
    for generation in attempt:
        each += min(generation.context, generation.prompt + baseline + written + generation.room)
        written += generation.room
    return plan.width * each + _scoring(plan, attempt, baseline)


def _scoring(plan: Plan, attempt: list[_Generation], baseline: int) -> int:
    """Each candidate beside the baseline, and what centring needs."""
    if plan.scoring != "gap" or plan.models.scorer is None:
        return 0
    candidate, base = attempt[-1].room, attempt[0].prompt + 2 * MESSAGE_TOKENS + baseline
    longest = plan.models.scorer.context_length
    pair = min(longest, base + candidate)
    if plan.models.calibration.centering == "antisymmetric":
        return 2 * plan.width * pair
    return plan.width * pair + min(longest, base + baseline)


def _room(plan: Plan, engine: Engine) -> int:
    """The most tokens of a response."""
    wanted = plan.options.max_tokens or engine.defaults.max_tokens or DEFAULT_MAX_TOKENS
    return min(engine.context_length, wanted)
