"""Must-keep constraints: what a candidate may not lose, whatever its score."""

import json
import time
from typing import Any

import pytest

from app.engines.base import Constraint
from app.errors import BadRequest
from app.improve.events import CandidateRejected, CandidateScored, RunCompleted
from app.improve.keep import Checks, Keep, LengthRatio, quoted
from app.improve.loop import ImprovementRun
from tests.app.conftest import Serve
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.loops import collect, options, result_of

PRICE = {"type": "object", "properties": {"price": {"type": "integer"}}, "required": ["price"]}


def broken(keep: Keep, text: str, reference: str = "no") -> list[str]:
    return [violation.constraint for violation in Checks(keep, None).violations(text, reference)]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"price": 24}', True),
        ('{"price": 24, "more": null}', True),
        ('{"price": "24"}', False),
        ("{}", False),
        ("24", False),
        ("The price is 24.", False),
        ('{"price": NaN}', False),
        ('{"price": ' + "9" * 5000 + "}", False),
        ("[" * 100_000, False),
        ('{"price": 24, "\\ud800": 1}', False),
        ("", False),
    ],
)
def test_json_of_a_schema(text: str, kept: bool) -> None:
    assert broken(Keep(json_schema=PRICE), text) == ([] if kept else ["json_schema"])


def test_a_violation_says_where() -> None:
    (found,) = Checks(Keep(json_schema=PRICE), None).violations('{"price": "a lot"}', "no")
    assert found.message == 'the value is not of type "integer", at price'


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "file:" + "///etc/hostname"},
        {"$ref": "#/nowhere"},
        {"$schema": "http://127.0.0.1:9/other"},
        {"pattern": "(?=a)b"},
        {"pattern": "("},
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, Any]) -> None:
    """Nothing is fetched for it."""
    with pytest.raises(BadRequest) as caught:
        Checks(Keep(json_schema=schema), None)
    assert caught.value.param == "keep.json_schema"


def test_a_pattern_of_a_client_costs_linear_time() -> None:
    """Python's own regular expressions would take longer than the universe has existed."""
    started = time.process_time()
    assert broken(Keep(json_schema={"pattern": "^(a+)+$"}), json.dumps("a" * 5000 + "!")) == ["json_schema"]
    assert time.process_time() - started < 1


def test_quotes_and_what_the_reference_quotes() -> None:
    reference = 'He said "no way" and “never”, not «jamais».'
    assert quoted(reference) == ["no way", "never", "jamais"]
    keep = Keep(quotes=("He said",), quoted=True)
    assert broken(keep, "He said no way, never, jamais.", reference) == []
    assert broken(keep, "He said no  way, never, jamais.", reference) == ["quotes"]
    assert broken(keep, "he said no way, never, jamais.", reference) == ["quotes"]
    assert quoted('An inch is 1", a foot 12" long') == [", a foot 12"]
    assert quoted('"" and " "') == []


@pytest.mark.parametrize(
    ("ratio", "text", "kept"),
    [
        (LengthRatio(max=1.5), "a" * 15, True),
        (LengthRatio(max=1.5), "a" * 16, False),
        (LengthRatio(min=0.5), "a" * 5, True),
        (LengthRatio(min=0.5), "a" * 4, False),
        (LengthRatio(0.5, 2, "words"), "a", True),
        (LengthRatio(0.5, 2, "words"), "a b c d", True),
        (LengthRatio(0.5, 2, "words"), "a b c d e", False),
    ],
)
def test_the_length_over_the_reference_s(ratio: LengthRatio, text: str, kept: bool) -> None:
    assert broken(Keep(length_ratio=ratio), text, "two words.") == ([] if kept else ["length_ratio"])


@pytest.mark.parametrize(
    ("keep", "param"),
    [
        (Keep(quotes=("yes",)), "keep.quotes"),
        (Keep(length_ratio=LengthRatio(2, 1)), "keep.length_ratio"),
        (Keep(quotes=("no",), length_ratio=LengthRatio(max=0.5)), "keep.length_ratio"),
        (Keep(json_schema={"type": 1}), "keep.json_schema"),
    ],
)
async def test_what_no_response_can_keep_is_refused_before_anything_is_generated(
    keep: Keep, param: str
) -> None:
    improver = FakeEngine()
    with pytest.raises(BadRequest) as caught:
        await ImprovementRun.start(fake_models(improver=improver), options(keep=keep))
    assert (caught.value.param, improver.started) == (param, 0)


async def test_a_violation_is_not_scored_and_a_worse_candidate_that_keeps_wins() -> None:
    """The best score does not help: the text must stand."""
    texts = iter(["a much longer answer", "no it is", "long and longer still"])
    scorer = FakeScorer(value=lambda t: float(len(t)))
    improver = FakeEngine(script=lambda _: next(texts))
    events = await collect(
        fake_models(improver=improver, scorer=scorer),
        options(candidates=3, max_iterations=1, keep=Keep(quotes=("no",))),
    )
    rejected = [(e.candidate, e.violations[0].constraint) for e in events if isinstance(e, CandidateRejected)]
    assert rejected == [(0, "quotes"), (2, "quotes")]
    assert [e.candidate for e in events if isinstance(e, CandidateScored)] == [1]
    assert isinstance(events[-1], RunCompleted)
    assert (events[-1].result.response, events[-1].result.violations) == ("no it is", ())
    pair = 3 * 2 + len(["What", "is", "the", "price", "?"]) + len(["no", "it", "is"]) + 1
    assert scorer.tokens == pair + pair - 2  # the candidate, and the reference against itself


@pytest.mark.parametrize("scoring", ["off", "best_effort", "required"])
async def test_constraints_hold_in_every_scoring_mode(scoring: Any) -> None:
    """An ungated candidate that breaks one is rejected too; patience ends a run that gets nowhere."""
    scorer = FakeScorer(value=lambda t: float(len(t)))
    models = fake_models(improver=FakeEngine(script=lambda _: "longer and longer"), scorer=scorer)
    chosen = options(scoring=scoring, patience=2, max_iterations=9, keep=Keep(quotes=("no",)))
    result = await result_of(models, chosen)
    assert (result.response, result.stop_reason, len(result.iterations)) == ("no", "patience", 2)
    assert all(i.violations and i.gap is None and not i.accepted for i in result.iterations)
    assert scorer.calls == 0


async def test_a_reference_that_breaks_a_constraint_may_be_mended() -> None:
    """Prose to JSON: that is what the improvement is for. If it fails, the answer says so."""
    answers = iter(["[]", '{"price":24}'])
    models = fake_models(
        improver=FakeEngine(script=lambda _: next(answers)), scorer=FakeScorer(value=lambda t: float(len(t)))
    )
    keep = Keep(json_schema=PRICE)
    result = await result_of(models, options(max_iterations=1, keep=keep))
    assert (result.response, [v.constraint for v in result.violations]) == ("no", ["json_schema"])
    result = await result_of(models, options(max_iterations=1, keep=keep))
    assert (result.response, result.violations) == ('{"price":24}', ())


@pytest.mark.parametrize("strategy", ["pit", "self_refine", "best_of_n"])
async def test_responses_are_generated_in_the_form_they_must_have_and_feedback_is_not(strategy: Any) -> None:
    engine = FakeEngine()
    models = fake_models(policy=engine, improver=engine)
    await collect(models, options(reference=None, strategy=strategy, candidates=2, keep=Keep(PRICE)))
    free = [
        chat[-1]["content"].startswith("Give feedback") for chat in engine.prompts
    ]
    assert [s.constraint for s in engine.samplings] == [None if f else Constraint(PRICE) for f in free]
    assert any(free) == (strategy == "self_refine")


async def test_over_http(serve: Serve) -> None:
    """The request's fields, the answer's, and those of the `pit` object."""
    models = fake_models(
        improver=FakeEngine(script=lambda m: m[-2]["content"] + " more"),
        scorer=FakeScorer(value=lambda t: float(len(t))),
    )
    client = await serve(models)
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Price?"}],
        "reference": 'it is "24"',
        "max_iterations": 2,
        "view": "edits",
        "keep": {"quotes": ["it"], "quoted": True, "length_ratio": {"max": 1.5, "unit": "characters"}},
    }
    answer = (await client.post("/v1/improve", json=body)).raise_for_status().json()
    first, second = answer["iterations"]
    edit = {"op": "insert", "start": 10, "end": 10, "before": "", "after": " more"}
    assert (answer["response"], answer["edits"], answer["violations"]) == ('it is "24" more', [edit], [])
    assert (first["edits"], first["violations"], second["accepted"]) == ([edit], [], False)
    assert [v["constraint"] for v in second["violations"]] == ["length_ratio"]
    assert second["edits"] == [edit | {"start": 15, "end": 15}]
    events = (await client.post("/v1/improve", json=body | {"stream": True})).text
    assert 'event: candidate.rejected\ndata: {"type":"candidate.rejected","index":2,"candidate":0,' in events
    refusals: list[dict[str, Any]] = [{"quotes": ["gone"]}, {"length_ratio": {"max": 0}}, {"other": 1}]
    for wrong in refusals:
        refused = await client.post("/v1/improve", json=body | {"keep": wrong})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"].startswith("keep")
    chat = {"model": "pit", "messages": body["messages"], "pit": {"keep": {"json_schema": {"type": 5}}}}
    refused = await client.post("/v1/chat/completions", json=chat)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "keep.json_schema")


async def test_a_schema_that_nests_without_end_is_a_bad_request(serve: Serve) -> None:
    client = await serve()
    deep = '{"a":' * 900 + "1" + "}" * 900
    head = '{"messages": [{"role": "user", "content": "a"}], "reference": "b", "keep": {"json_schema": '
    for schema in (deep, '{"const": NaN}', '{"const": "\\ud800"}'):
        json_body = {"content": head + schema + "}}", "headers": {"content-type": "application/json"}}
        answer = await client.post("/v1/improve", **json_body)
        assert answer.status_code in ((200, 400) if schema is deep else (400,)), answer.text
