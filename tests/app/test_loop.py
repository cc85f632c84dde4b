"""The improvement loop: each way a run can go."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from app.engines.base import Message
from app.errors import BadRequest, ContextTooLong, DeadlineExceeded, EngineFailed, ScoringUnavailable
from app.improve.events import (
    CandidateScored,
    OutputDelta,
    RunCompleted,
)
from app.improve.loop import ImprovementRun
from tests.app.fakes import IMPROVE_TURN, FakeEngine, FakeScorer, fake_models
from tests.app.loops import QUESTION, collect, options, result_of


async def test_every_generation_of_a_run_has_its_own_seed() -> None:
    """Candidates drawn with one seed would all be the same."""
    improver = FakeEngine()
    scorer = FakeScorer(value=lambda text: 0.0)
    await collect(
        fake_models(improver=improver, scorer=scorer), options(candidates=4, max_iterations=3, patience=9)
    )
    seeds = [sampling.seed for sampling in improver.samplings]
    assert len(seeds) == 12
    assert len(set(seeds)) == 12


async def test_the_improver_reads_the_conversation_of_the_contract() -> None:
    """docs/checkpoint.md: prompt, assistant: reference, user: improve_turn."""
    improver = FakeEngine(script=lambda _: "the price is 24")
    await collect(fake_models(improver=improver), options(max_iterations=1))
    assert improver.prompts == [
        [*QUESTION, {"role": "assistant", "content": "no"}, {"role": "user", "content": IMPROVE_TURN}]
    ]


def growing(messages: Sequence[Message]) -> str:
    """An improver that adds a word to the answer that it reads."""
    return messages[-2]["content"] + " more"


async def test_each_iteration_starts_from_the_best_response() -> None:
    """An accepted response is what the next iteration improves."""
    models = fake_models(
        improver=FakeEngine(script=growing), scorer=FakeScorer(value=lambda t: float(len(t)))
    )
    result = await result_of(models, options(max_iterations=3))
    assert [i.text for i in result.iterations] == ["no more", "no more more", "no more more more"]
    assert result.response == "no more more more"
    assert (result.stop_reason, result.improved, result.scoring) == ("max_iterations", True, "gap")


async def test_a_rejected_candidate_stays_in_the_record_and_the_next_retries_from_the_best() -> None:
    """Never worse: a longer answer is worse here, and each retry reads the reference again."""
    improver = FakeEngine(script=growing)
    models = fake_models(improver=improver, scorer=FakeScorer(value=lambda t: -float(len(t))))
    result = await result_of(models, options(max_iterations=9, patience=3))
    assert [(i.text, i.accepted) for i in result.iterations] == [("no more", False)] * 3
    assert all(prompt[1]["content"] == "no" for prompt in improver.prompts)
    assert (result.response, result.improved, result.stop_reason) == ("no", False, "patience")


async def test_patience_of_one_stops_by_the_gap() -> None:
    models = fake_models(
        improver=FakeEngine(script=growing), scorer=FakeScorer(value=lambda t: -float(len(t)))
    )
    result = await result_of(models, options(max_iterations=9))
    assert (len(result.iterations), result.stop_reason) == (1, "gap")


async def test_an_identical_response_is_no_improvement_even_when_the_calibration_says_so() -> None:
    """b = 5 makes P(gap = 0) nearly 1: equal text is a tie by definition, and is not scored."""
    scorer = FakeScorer()
    models = fake_models(improver=FakeEngine(script=lambda m: m[-2]["content"]), scorer=scorer, b=5.0)
    result = await result_of(models, options())
    assert (result.response, result.improved, result.stop_reason) == ("no", False, "gap")
    assert (result.iterations[0].gap, result.iterations[0].win_probability) == (0.0, 0.5)
    assert scorer.calls == 0


async def test_an_identical_response_among_others_is_a_tie_too() -> None:
    """White space at the ends makes no difference to a reader."""
    texts = iter(["no ", "yes it is"])
    models = fake_models(
        improver=FakeEngine(script=lambda _: next(texts)), scorer=FakeScorer(value=lambda t: 0.0)
    )
    chosen = options(reference="no  ", candidates=2, max_iterations=1)
    scored = [e for e in await collect(models, chosen) if isinstance(e, CandidateScored)]
    assert (scored[0].gap, scored[0].win_probability) == (0.0, 0.5)


async def test_an_empty_response_is_never_accepted() -> None:
    models = fake_models(
        improver=FakeEngine(script=lambda _: ""), scorer=FakeScorer(value=lambda t: -float(len(t)))
    )
    assert (await result_of(models, options(min_win_probability=0))).response == "no"
    assert (await result_of(models, options(scoring="off"))).response == "no"


async def test_the_gap_is_centred_before_it_decides() -> None:
    """The raw score of a worse candidate is positive here (offset 0.7), and must not be accepted."""
    scorer = FakeScorer(value=lambda t: -0.1 * len(t), offset=5.0)
    result = await result_of(fake_models(improver=FakeEngine(script=growing), scorer=scorer), options())
    assert result.iterations[0].gap == pytest.approx(-0.5)
    assert not result.improved


async def test_scoring_off_takes_every_candidate_as_the_next_baseline() -> None:
    """The ungated chain: what the paper runs, and what evaluation compares with the gate."""
    models = fake_models(
        improver=FakeEngine(script=growing), scorer=FakeScorer(value=lambda t: -float(len(t)))
    )
    result = await result_of(models, options(scoring="off", max_iterations=5))
    assert result.response == "no" + " more" * 5
    assert all(i.accepted and i.gap is None for i in result.iterations)
    assert (result.scoring, result.stop_reason) == ("off", "max_iterations")
    assert result.usage.score.total == 0


async def test_best_effort_without_a_gap_reward_takes_one_iteration_and_says_skipped() -> None:
    models = replace(fake_models(improver=FakeEngine(script=growing)), scorer=None)
    result = await result_of(models, options(max_iterations=5, candidates=4))
    assert (result.response, result.scoring, result.stop_reason) == ("no more", "skipped", "max_iterations")
    assert len(result.iterations) == 1


async def test_scoring_that_fails_midway_keeps_the_best_response() -> None:
    scorer = FakeScorer(value=lambda t: float(len(t)), failure=ScoringUnavailable("Down."), fail_from_call=1)
    models = fake_models(improver=FakeEngine(script=growing), scorer=scorer)
    result = await result_of(models, options(max_iterations=5))
    assert (result.response, result.scoring, result.stop_reason) == ("no more", "skipped", "error")
    assert [i.accepted for i in result.iterations] == [True, False]


async def test_required_scoring_fails_without_and_with_a_broken_gap_reward() -> None:
    with pytest.raises(ScoringUnavailable):
        await ImprovementRun.start(replace(fake_models(), scorer=None), options(scoring="required"))
    broken = fake_models(scorer=FakeScorer(failure=EngineFailed("Down.")))
    with pytest.raises(ScoringUnavailable):
        await result_of(broken, options(scoring="required"))


async def test_a_candidate_too_long_for_the_gap_reward_is_rejected_and_the_others_are_scored() -> None:
    """One endless candidate must not cost the run its scoring."""
    scorer = FakeScorer(value=lambda t: float(len(t)), context_length=24)
    texts = iter(["word " * 30, "better answer"])
    improver = FakeEngine(script=lambda _: next(texts))
    result = await result_of(
        fake_models(improver=improver, scorer=scorer), options(candidates=2, max_iterations=1, max_tokens=40)
    )
    assert (result.response, result.scoring) == ("better answer", "gap")


async def test_candidates_run_side_by_side_and_the_best_wins() -> None:
    """Four candidates of 50 ms take about 50 ms, and one batch of scores."""
    texts = iter(["bb", "dddd", "a", "ccc"])
    improver = FakeEngine(script=lambda _: next(texts), delay_s=0.05)
    scorer = FakeScorer(value=lambda t: float(len(t)))
    loop = asyncio.get_running_loop()
    started = loop.time()
    events = await collect(
        fake_models(improver=improver, scorer=scorer), options(candidates=4, max_iterations=1)
    )
    assert loop.time() - started < 0.15
    last = events[-1]
    assert isinstance(last, RunCompleted)
    assert (last.result.response, last.result.iterations[0].candidate) == ("dddd", 1)
    assert scorer.calls == 1
    assert sum(isinstance(e, CandidateScored) for e in events) == 4


async def test_self_refine_asks_for_feedback_and_then_for_a_rewrite() -> None:
    """Madaan et al.: two generations of the policy, both counted."""
    policy = FakeEngine(
        script=lambda m: "too short" if "feedback on" in m[-1]["content"] else "a longer answer"
    )
    models = fake_models(policy=policy, scorer=FakeScorer(value=lambda t: float(len(t))))
    events = await collect(models, options(strategy="self_refine", max_iterations=1, rubric="Be {long}."))
    first = [*QUESTION, {"role": "assistant", "content": "no"}]
    feedback = {"role": "user", "content": "Give feedback on your answer. Be {long}."}
    rewrite = {"role": "user", "content": "Rewrite your answer with this feedback."}
    assert policy.prompts == [
        [*first, feedback],
        [*first, feedback, {"role": "assistant", "content": "too short"}, rewrite],
    ]
    last = events[-1]
    assert isinstance(last, RunCompleted)
    assert last.result.response == "a longer answer"
    assert last.result.usage.improve.completion_tokens == 2 + 3
    assert [e.phase for e in events if isinstance(e, OutputDelta)] == ["feedback"] * 2 + ["response"] * 3
    assert last.result.models == {"policy": "fake", "gap_reward": "fake-gap"}


async def test_best_of_n_compares_policy_samples_with_the_first() -> None:
    texts = iter(["aa", "bbbb", "ccc"])
    models = fake_models(
        policy=FakeEngine(script=lambda _: next(texts)), scorer=FakeScorer(value=lambda t: float(len(t)))
    )
    result = await result_of(models, options(strategy="best_of_n", reference=None, candidates=3))
    assert (result.reference, result.response, len(result.iterations)) == ("aa", "bbbb", 1)
    with pytest.raises(BadRequest):
        await ImprovementRun.start(models, options(strategy="best_of_n", reference=None, candidates=1))
    with pytest.raises(BadRequest):
        await ImprovementRun.start(models, options(strategy="best_of_n", scoring="off"))
    with pytest.raises(ScoringUnavailable):
        await ImprovementRun.start(replace(models, scorer=None), options(strategy="best_of_n"))


async def test_best_of_n_generates_its_candidates_beside_the_draft() -> None:
    """One generation's time for all; the events are in their order all the same."""
    engine = FakeEngine(delay_s=0.002)
    models = fake_models(policy=engine)
    run = await ImprovementRun.start(models, options(strategy="best_of_n", reference=None, candidates=3))
    most, kinds = 0, []
    async for event in run.events():
        most = max(most, engine.running)
        kinds.append((type(event).__name__, getattr(event, "index", None)))
    assert most == 3
    started = kinds.index(("IterationStarted", 1))
    assert {kind for kind in kinds[1:started]} == {("OutputDelta", 0)}
    assert ("OutputDelta", 1) in kinds[started:] and ("OutputDelta", 0) not in kinds[started:]


async def test_best_of_n_that_is_cancelled_while_it_drafts_aborts_all_of_it() -> None:
    engine = FakeEngine(delay_s=0.01)
    models = fake_models(policy=engine)
    run = await ImprovementRun.start(models, options(strategy="best_of_n", reference=None, candidates=3))
    async for event in run.events():
        if isinstance(event, OutputDelta):
            run.cancel()
    assert (engine.running, engine.started) == (0, 3)
    assert isinstance(event, RunCompleted) and event.result.stop_reason == "cancelled"
    used = event.result.usage.draft.completion_tokens + event.result.usage.improve.completion_tokens
    assert used == engine.completion_tokens


async def test_a_deadline_ends_the_run_with_the_best_response_and_aborts_the_generation() -> None:
    improver = FakeEngine(script=growing, delay_s=0.05)
    models = fake_models(improver=improver, scorer=FakeScorer(value=lambda t: float(len(t))))
    result = await result_of(models, options(max_iterations=20, deadline_s=0.3))
    assert result.stop_reason == "deadline"
    assert result.response.startswith("no more")
    assert result.iterations[-1].finish_reason == "deadline"
    assert not result.iterations[-1].accepted
    assert (improver.running, improver.aborted) == (0, 1)


async def test_a_deadline_during_scoring_keeps_the_reference() -> None:
    models = fake_models(improver=FakeEngine(script=growing), scorer=FakeScorer(delay_s=5))
    result = await result_of(models, options(deadline_s=0.1))
    assert (result.response, result.stop_reason) == ("no", "deadline")


async def test_a_deadline_before_there_is_any_response_fails_the_run() -> None:
    models = fake_models(policy=FakeEngine(delay_s=5))
    with pytest.raises(DeadlineExceeded):
        await result_of(models, options(reference=None, deadline_s=0.05))


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("after", [1, 3, 5])
async def test_closing_the_events_aborts_every_generation(candidates: int, after: int) -> None:
    """This is what a client's disconnect comes down to."""
    improver = FakeEngine(script=lambda _: "one two three four five six", delay_s=0.01)
    run = await ImprovementRun.start(fake_models(improver=improver), options(candidates=candidates))
    async with aclosing(run.events()) as events:
        for _ in range(after):
            await anext(events)
    assert improver.running == 0
    assert improver.aborted == improver.started


async def test_an_engine_that_dies_fails_the_run_and_no_sibling_goes_on() -> None:
    improver = FakeEngine(failure=EngineFailed("Gone."))
    with pytest.raises(EngineFailed):
        await result_of(fake_models(improver=improver), options(candidates=3))
    assert improver.running == 0


async def test_too_long_a_conversation_is_refused_before_anything_is_generated() -> None:
    """The message has the count, the limit, and what to shorten."""
    models = fake_models()
    with pytest.raises(ContextTooLong) as caught:
        await ImprovementRun.start(models, options(messages=({"role": "user", "content": "word " * 300},)))
    assert caught.value.param == "messages"
    assert "256" in caught.value.message
    with pytest.raises(ContextTooLong) as caught:
        await ImprovementRun.start(models, options(reference="word " * 300))
    assert caught.value.param == "reference"
    with pytest.raises(ContextTooLong):
        await ImprovementRun.start(models, options(max_tokens=250))


async def test_a_response_that_outgrows_the_context_ends_the_run_cleanly() -> None:
    improver = FakeEngine(script=lambda m: m[-2]["content"] + " more" * 20, context_length=100)
    models = fake_models(improver=improver, scorer=FakeScorer(value=lambda t: float(len(t))))
    result = await result_of(models, options(max_iterations=20, max_tokens=45))
    assert result.stop_reason == "token_budget"
    assert result.improved


async def test_models_that_the_server_does_not_have_are_named() -> None:
    for missing, chosen in (("policy", options(reference=None)), ("improver", options())):
        with pytest.raises(BadRequest) as caught:
            await ImprovementRun.start(replace(fake_models(), **{missing: None}), chosen)  # type: ignore[arg-type]
        assert missing in caught.value.message
