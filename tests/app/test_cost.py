"""The worst case that a request is charged: never less than what it takes, and no more than it has to be."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from app.checkpoint import SamplingDefaults
from app.engines.base import Message
from app.errors import AppError
from app.improve.gate import GapCalibration
from app.improve.loop import ImprovementRun
from app.improve.options import Models, Options
from tests.app.fakes import FakeEngine, FakeScorer, fake_models

MESSAGES = (
    Message(role="system", content="Be short ."),
    Message(role="user", content="What is the price and the color ?"),
)
WORDS = 12
"""What the fake engines write at most, by their checkpoints."""
SLACK = 45
"""For the template of a comparison, the turn that this gap reward does not read, a reference that is longer
than what replaces it."""


def models(length: int, centering: str = "self", rises: bool = True) -> Models:
    """Engines that always write `length` words, and a gap reward that likes what is new, or nothing."""
    texts = iter(range(10**9))

    def write(_: object) -> str:
        return " ".join([f"n{next(texts)}", *["word"] * (length - 1)])

    def worth(text: str) -> float:
        return max((float(word[1:]) for word in text.split() if word[1:].isdigit()), default=-1.0)

    scorer = FakeScorer(value=(worth if rises else lambda text: -worth(text)))
    policy, improver = (
        FakeEngine(script=write, model_id=name, defaults=SamplingDefaults(0.7, max_tokens=WORDS))
        for name in ("policy", "improver")
    )
    made = fake_models(policy, improver, scorer)
    return replace(made, calibration=GapCalibration(centering, 2.0, 0.0))  # type: ignore[arg-type]


async def spent(run: ImprovementRun) -> int:
    async with aclosing(run.events()) as events:
        async for _ in events:
            pass
    return run.tokens_used


async def bounds_and_use(models: Models, options: Options) -> tuple[int, int, int]:
    run = await ImprovementRun.start(models, options)
    return await run.worst_case(exact=False), await run.worst_case(exact=True), await spent(run)


async def test_a_run_that_takes_all_it_may_takes_the_worst_case() -> None:
    """Every candidate as long as it may be, every iteration accepted: the bound is all but reached, and off
    only by what is allowed for the gap reward's template."""
    for centering in ("self", "antisymmetric"):
        for width, iterations in ((1, 1), (1, 3), (4, 5)):
            for reference in (None, "It is " + "very " * 10 + "red ."):
                options = Options(
                    MESSAGES, reference, candidates=width, max_iterations=iterations, max_tokens=WORDS
                )
                run = await ImprovementRun.start(models(WORDS, centering), options)
                bound = await run.worst_case(exact=True)
                used = await spent(run)
                assert len(run.iterations) == iterations
                scored = (2 * width if centering == "antisymmetric" else width + 1) * iterations
                assert used <= bound <= used + SLACK * scored, (centering, width, used, bound)


async def test_without_scoring_the_bound_is_reached_to_a_few_tokens() -> None:
    options = Options(MESSAGES, max_iterations=4, scoring="off", max_tokens=WORDS)
    run = await ImprovementRun.start(models(WORDS), options)
    bound = await run.worst_case(exact=True)
    assert await spent(run) == bound


drawn = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(["pit", "self_refine", "best_of_n"]),
        "reference": st.sampled_from([None, "Red .", "It is " + "very " * 30 + "red ."]),
        "max_iterations": st.integers(1, 5),
        "candidates": st.integers(1, 5),
        "scoring": st.sampled_from(["off", "best_effort", "required"]),
        "patience": st.integers(1, 3),
        "max_tokens": st.sampled_from([None, 3, 40]),
        "max_total_tokens": st.sampled_from([None, 150, 600]),
        "seed": st.integers(0, 3),
    }
)


@given(drawn, st.integers(1, 50), st.sampled_from(["self", "antisymmetric"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_run_takes_more_than_its_worst_case(
    chosen: dict[str, object], length: int, centering: str, rises: bool
) -> None:
    options = Options(MESSAGES, **chosen)  # type: ignore[arg-type]
    try:
        rough, bound, used = asyncio.run(bounds_and_use(models(length, centering, rises), options))
    except AppError:
        return
    assert used <= bound <= rough
    if options.max_total_tokens is not None:
        assert bound <= options.max_total_tokens


async def test_the_bound_holds_where_an_upstream_counts_for_itself() -> None:
    """Prompts of unknown length are counted for the bound, and only for it."""
    found = models(WORDS)
    counted: list[bool] = []

    class Remote(FakeEngine):
        async def prepare(self, messages, *, count=True, tools=None):  # type: ignore[no-untyped-def]
            prompt = await super().prepare(messages, count=count, tools=tools)
            counted.append(count)
            return prompt if count else replace(prompt, tokens=None)

    remote = Remote(defaults=SamplingDefaults(0.7, max_tokens=WORDS))
    run = await ImprovementRun.start(replace(found, improver=remote), Options(MESSAGES, "Red ."))
    assert True not in counted
    rough = await run.worst_case(exact=False)
    assert True not in counted
    assert rough > await run.worst_case(exact=True) > 3 * (WORDS + 15)
    assert True in counted
