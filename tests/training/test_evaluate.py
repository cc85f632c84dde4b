"""Evaluation: statistics by values computed by hand, and the whole against the real server over fakes."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from rich.console import Console

from app.engines.base import Message
from app.improve.turns import FEEDBACK_TURN, REFINE_TURN
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine, FakeScorer, factory_of, fake_models
from training import synthetic
from training.answers import AnswerFile, responses, set_aside, tokens_after, until_first_rejection
from training.bars import edit_bars
from training.config import RunConfig, load_config
from training.data import PreferencePair, write_pairs
from training.errors import CheckpointError, ConfigError, DataError, TrainingError
from training.evaluate import Options, evaluate, examples
from training.helpdesk import gold_score
from training.serving import server, server_command
from training.systems import CallFailed, Client, Plan, call_seed, scored_order
from training.verdicts import (
    agreement,
    compare_systems,
    edits,
    expected_calibration_error,
    iteration_rows,
    length_controlled,
    scored_candidates,
)

ROOT = Path(__file__).resolve().parents[2]


def iteration(index: int, text: str, accepted: bool, probability: float | None = None) -> dict[str, Any]:
    tokens = {"prompt": 10, "completion": index, "cached": 4}
    return {
        "index": index, "text": text, "accepted": accepted, "win_probability": probability, "tokens": tokens
    }  # fmt: skip


RUN = {
    "reference": "y0",
    "iterations": [iteration(1, "a", True, 0.9), iteration(2, "b", False, 0.4), iteration(3, "c", True, 0.7)],
}


# ---------------------------------------------------------------------------------------- records


def test_a_rejected_candidate_changes_nothing_and_a_missing_iteration_keeps_the_last() -> None:
    assert responses(RUN, 5) == ["y0", "a", "a", "c", "c", "c"]
    assert responses(RUN, 2) == ["y0", "a", "a"]


def test_the_run_with_patience_1_is_the_run_up_to_its_first_rejection() -> None:
    assert responses(until_first_rejection(RUN), 3) == ["y0", "a", "a", "a"]
    assert tokens_after(until_first_rejection(RUN), 3) == {"prompt": 20, "completion": 3, "cached": 8}
    assert tokens_after(RUN, 3) == {"prompt": 30, "completion": 6, "cached": 12}


def test_a_candidate_is_judged_against_the_response_that_it_was_to_replace() -> None:
    """c was written after b was rejected: its baseline is a."""
    scores = {"y0": 0.0, "a": 2.0, "b": 1.0, "c": 5.0}
    assert scored_candidates(RUN, scores.__getitem__) == [(0.9, 2.0), (0.4, -1.0), (0.7, 3.0)]
    assert scored_candidates(RUN, scores.__getitem__, 1) == [(0.9, 2.0)]


# ---------------------------------------------------------------------------------------- statistics


def test_a_comparison_has_win_lose_and_means() -> None:
    texts, others = ["a b", "a", "a", "a"], ["a", "a", "a", "a b c"]
    found = compare_systems("x", [3, 1, 1, 0], [1, 1, 0, 1], texts, others)
    assert (found.rate.win, found.rate.lose, found.rate.delta) == (50.0, 25.0, 25.0)
    assert (found.score.mean, found.baseline_score.mean) == (1.25, 0.75)
    assert (found.words, found.baseline_words) == (1.25, 1.5)


def test_a_win_by_length_alone_vanishes_at_equal_length() -> None:
    """Verdict = length difference exactly, so the line goes through 0; its plain Δ would be +50."""
    assert length_controlled([1, 1, 1, -1], [1, 1, 1, -1]).delta == pytest.approx(0)
    # Points (2, 1) and (1, 0): slope 1, intercept -1.
    assert length_controlled([1, 0], [2, 1]).delta == pytest.approx(-100)
    # No difference in length: the plain mean.
    assert length_controlled([1, 0, 0, -1, 1], [7] * 5).delta == pytest.approx(20)


def test_agreement_leaves_ties_of_the_judge_out() -> None:
    found = agreement([0.9, 0.2, 0.8, 0.5, 0.7], [1.0, -2.0, -1.0, 3.0, 0.0])
    assert found is not None
    assert (found.pairs, found.ties) == (4, 1)
    assert found.accuracy == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert agreement([0.9], [0.0]) is None


@pytest.mark.slow
def test_the_calibration_error_is_that_of_the_manifest() -> None:
    """Bins: {0.15 → 0, 0.12 → 1}: |0.27 − 1|; {0.95 → 1, 1.0 → 1}: |1.95 − 2|; over 4."""
    p, y = [0.15, 0.12, 0.95, 1.0], [False, True, True, True]
    assert expected_calibration_error(p, y) == pytest.approx((0.73 + 0.05) / 4)
    from training.calibrate import expected_calibration_error as other  # imports torch

    assert expected_calibration_error(p, y) == pytest.approx(other(p, y))


def test_iteration_rows_count_from_the_reference() -> None:
    records = [RUN, {"reference": "z", "iterations": [iteration(1, "z", False, 0.5)]}]
    rows = iteration_rows([[0, 0], [1, 0], [3, -1]], records, gated=True)
    assert [row.score.mean for row in rows] == [0, 0.5, 1]
    assert rows[0].gain is None and rows[2].gain is not None and rows[2].gain.mean == 0.5
    assert rows[1].rate is not None and rows[1].rate.delta == 50
    assert (rows[2].better, rows[2].worse) == (50, 50)
    assert (rows[1].accepted, rows[2].accepted) == (50, 0)
    assert rows[1].win_probability == pytest.approx(0.7)
    assert (rows[1].first_rejected, rows[2].first_rejected) == (50, 50)


def test_edits_are_counted_against_the_draft() -> None:
    found = edits(
        [4, 4, 4, 4], [0, 2, 4, 6], ["d"] * 4, ["h", "e", "d ", "f"], ([0.9] * 4, [0.1, 0.95, 0.1, 0.1])
    )
    assert (found.closer, found.farther, found.equal, found.exact, found.unchanged) == (50, 25, 25, 25, 25)
    assert (found.distance_before, found.distance_after) == (4, 3)
    assert found.both == 25  # the first alone is closer and less toxic
    assert [bar.passed for bar in edit_bars(found)] == [False]
    assert [bar.passed for bar in edit_bars(replace(found, both=None, closer=70, farther=10))] == [True, True]


# ---------------------------------------------------------------------------------------- plan


def test_the_report_prints_the_turns_that_the_server_uses() -> None:
    assert (synthetic.FEEDBACK_TURN, synthetic.REFINE_TURN) == (FEEDBACK_TURN, REFINE_TURN)


def test_the_gate_is_all_that_differs_between_the_two_pit_runs() -> None:
    plan = Plan(seed=3)
    assert call_seed(plan, "x", "pit") == call_seed(plan, "x", "pit_gated")
    seeds = {call_seed(plan, example, system) for example in "xy" for system in plan.systems()}
    assert len(seeds) == 2 * (len(plan.systems()) - 1)
    assert call_seed(replace(plan, seed=4), "x", "pit") != call_seed(plan, "x", "pit")


def test_held_out_scores_put_either_response_first() -> None:
    """Else the label would be "better" every time, and calibration could not be measured."""
    pairs = synthetic.make_pairs(200, 1)
    first = sum(scored_order(pair)[0] == pair.chosen for pair in pairs)
    assert 70 < first < 130


# ---------------------------------------------------------------------------------------- the file of answers


def test_answers_survive_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    with AnswerFile(path, {"seed": 1}) as answers:
        answers.add("x", "pit", {"text": "ä\n"})
        answers.add("x", "score", {"gap": 1.0})
    path.write_bytes(path.read_bytes()[:-7])
    with AnswerFile(path, {"seed": 1}) as answers:
        assert answers.known == {"x": {"pit": {"text": "ä\n"}}}
        answers.add("x", "score", {"gap": 2.0})
    with AnswerFile(path, {"seed": 1}) as answers:
        assert answers.of("x")["score"] == {"gap": 2.0}


def test_answers_to_other_settings_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    with AnswerFile(path, {"seed": 1, "iterations": 5}):
        pass
    with pytest.raises(ConfigError, match=r"iterations: 5 then, 3 now.*--again"):
        AnswerFile(path, {"seed": 1, "iterations": 3})
    before = path.read_bytes()
    set_aside(path)
    assert (tmp_path / "responses.1.jsonl").read_bytes() == before
    assert not path.exists()


# ---------------------------------------------------------------------------------------- examples


def config_of(tmp_path: Path, *overrides: str) -> RunConfig:
    settings = ["data.pairs=60", "data.heldout=30", f"output={tmp_path / 'run'}", *overrides]
    return load_config(ROOT / "training/configs/demo.yaml", settings)


def test_helpdesk_examples_are_new_to_training_and_calibration_and_do_not_depend_on_their_number(
    tmp_path: Path,
) -> None:
    from training.prepare import PARTS, prepare_data, read_part

    config = config_of(tmp_path)
    prepare_data(config)
    seen = {pair.prompt[0]["content"] for part in (*PARTS, "heldout") for pair in read_part(config, part)}
    found = examples(config, 50, 1)
    assert len({pair.prompt[0]["content"] for pair in found}) == 50
    assert not seen & {pair.prompt[0]["content"] for pair in found}
    assert examples(config, 20, 1) == found[:20]
    assert examples(config, 20, 2) != found[:20]


def pair_of(name: str, draft: str, *rewrites: str) -> PreferencePair:
    prompt = (Message(role="user", content="Write one comment."),)
    return PreferencePair(name, prompt, rewrites[0], draft, "test", rewrites)


def test_examples_of_a_file_gather_the_rewrites_of_one_draft(tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    pairs = [pair_of(f"p{i}", f"draft {i}", f"human {i}") for i in range(12)]
    write_pairs(path, [*pairs, pair_of("again", "draft 11", "another human")])
    config = config_of(
        tmp_path,
        "data.format=chat_pairs",
        f"data.path={path}",
        f"data.heldout_path={path}",
        "data.heldout=10",
    )
    found = examples(config, 99, 1)
    assert [pair.id for pair in found] == [f"p{i}" for i in range(12)]
    assert found[11].references == ("human 11", "another human")


def test_without_prepared_data_the_error_says_what_writes_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, "data.format=chat_pairs", "data.path=x.jsonl")
    with pytest.raises(DataError, match="pit-train run"):
        examples(config, 5, 1)


# ---------------------------------------------------------------------------------------- one call


def client_of(answer: Callable[[httpx.Request], httpx.Response], deadline_s: float = 5.0) -> Client:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server")
    return Client(http, deadline_s, pause_s=0.01)


async def test_a_call_is_repeated_only_where_nothing_was_begun() -> None:
    calls: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request.url.path)
        if len(calls) == 1:
            raise httpx.ConnectError("refused")
        if len(calls) == 2:
            return httpx.Response(503, headers={"retry-after": "0"}, json={"error": {"message": "full"}})
        return httpx.Response(200, json={"ok": 1})

    assert await client_of(answer).post("/v1/score", {}) == {"ok": 1}
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (httpx.Response(400, json={"error": {"message": "Too long."}}), True),
        (httpx.Response(500, text="<html>"), False),
        (httpx.Response(503, json={"error": {"message": "no retry-after"}}), False),
    ],
)
async def test_other_answers_are_final(answer: httpx.Response, refused: bool) -> None:
    calls: list[int] = []

    def give(_: httpx.Request) -> httpx.Response:
        calls.append(1)
        return answer

    with pytest.raises(CallFailed) as caught:
        await client_of(give).post("/v1/improve", {})
    assert caught.value.refused is refused
    assert len(calls) == 1


async def test_a_broken_connection_is_not_repeated_because_the_server_may_have_begun() -> None:
    calls: list[int] = []

    def give(_: httpx.Request) -> httpx.Response:
        calls.append(1)
        raise httpx.ReadError("reset")

    with pytest.raises(CallFailed, match="ReadError"):
        await client_of(give).post("/v1/improve", {})
    assert len(calls) == 1


async def test_a_call_ends_at_its_deadline_and_says_what_it_waited_for() -> None:
    def give(_: httpx.Request) -> httpx.Response:
        return httpx.Response(503, headers={"retry-after": "30"}, json={"error": {"message": "It starts."}})

    started = time.monotonic()
    with pytest.raises(CallFailed, match=r"within 0.3 s \(It starts"):
        await client_of(give, deadline_s=0.3).post("/v1/improve", {})
    assert time.monotonic() - started < 3


# ---------------------------------------------------------------------------------------- the whole


def perfect(chat: Sequence[Message]) -> str:
    """An improver that answers the question perfectly."""
    prompt = chat[0]["content"]
    question = next(q for q in _questions() if q.text == prompt)
    facts = " ".join(f"It has {a} {question.facts[a]}." for a in question.asked)
    body = "I am sorry, but I cannot help with that." if question.harmful else facts
    return f"Thank you for your question! {body} Have a nice day!"


def _questions() -> list[Any]:
    from training.helpdesk import parse_question

    return [parse_question(prompt) for prompt in PROMPTS]


PROMPTS: list[str] = []


def gold_value(text: str) -> float:
    """A gap reward that likes what the perfect answer begins with."""
    return 5.0 if text.startswith("Thank you") else -len(text.split()) / 10


@contextmanager
def serving(**fakes: Any) -> Iterator[tuple[str, Any]]:
    """The real application over fake models, on a real socket in a thread; gives its URL and its models."""
    models = fake_models(**fakes)
    app = create_app(Settings(), factory_of(models))
    instance = uvicorn.Server(uvicorn.Config(app, log_level="error", port=0))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(instance.serve(sockets=[listener])))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        deadline = time.monotonic() + 20
        while httpx.get(f"{url}/health/ready").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        yield url, models
    finally:
        instance.should_exit = True
        thread.join(20)


def rude(_: Sequence[Message]) -> str:
    return "Just read the label. It has color mud."


@pytest.fixture
def helpdesk(tmp_path: Path) -> RunConfig:
    config = config_of(tmp_path)
    PROMPTS[:] = [pair.prompt[0]["content"] for pair in examples(config, 6, 1)]
    return config


def run(config: RunConfig, url: str, **options: Any) -> tuple[Path, str]:
    console = Console(file=StringIO(), width=240)
    values: dict[str, Any] = {
        "examples": 6,
        "iterations": 4,
        "concurrency": 4,
        "url": url,
        "deadline_s": 10.0,
        **options,
    }
    output = evaluate(config, Options(**values), console)
    return output, console.file.getvalue()  # type: ignore[attr-defined]


def test_the_whole_evaluation_through_the_real_server(helpdesk: RunConfig) -> None:
    """A policy that is always rude, an improver that is always perfect: every figure is known beforehand."""
    with serving(
        policy=FakeEngine(context_length=2048, script=rude, model_id="p"),
        improver=FakeEngine(
            context_length=2048,
            script=perfect,
            model_id="i",
            defaults=replace(FakeEngine().defaults, max_tokens=80),
        ),
        scorer=FakeScorer(value=gold_value, context_length=4096),
    ) as (url, models):
        output, text = run(helpdesk, url)
    report = json.loads((output / "report.json").read_text())["figures"]
    by_name = {one["name"]: one for one in report["comparisons"]}

    assert report["examples"] == 6
    assert by_name["PIT vs Original"]["rate"]["delta"] == 100
    assert by_name["PIT vs Original"]["score"]["mean"] == 6.5
    original = gold_score(PROMPTS[0], rude([]))
    assert by_name["PIT vs Original"]["baseline_score"]["mean"] == original
    # The policy repeats itself, so Self-Refine and best-of-4 gain nothing.
    assert by_name["Self-Refine vs Original"]["rate"]["delta"] == 0
    assert by_name["best-of-4 vs Original"]["rate"]["delta"] == 0
    assert by_name["PIT vs Self-Refine, 1 iteration"]["rate"]["delta"] == 100
    # After the first iteration the improver says the same again, which no gate accepts.
    gated = report["loops"]["pit_gated"]
    assert [row["accepted"] for row in gated[1:]] == [100, 0, 0, 0]
    assert [row["first_rejected"] for row in gated[1:]] == [0, 100, 0, 0]
    assert [row["score"]["mean"] for row in gated] == [original, 6.5, 6.5, 6.5, 6.5]
    assert report["stops"] == {"max_iterations": 6}
    agreed = report["agreements"]["PIT output and its reference"]
    assert (agreed["pairs"], agreed["ties"], agreed["accuracy"]) == (6, 18, 1.0)
    content = {one["name"]: one for one in report["content"]}
    assert (content["Original"]["right"], content["PIT"]["right"], content["PIT"]["coverage"]) == (
        0,
        100,
        100,
    )
    spent = {one["name"]: one for one in report["spent"]}
    assert spent["best-of-4"]["written"] == 4 * 8
    assert spent["self_refine:all, 3"]["written"] == 3 * 2 * 8
    assert "PASS  PIT vs Original (gated)" in text and "MISS  values right in the policy" in text
    markdown = (output / "report.md").read_text()
    assert FEEDBACK_TURN in markdown and all(rubric in markdown for rubric in synthetic.RUBRICS.values())
    # One improve call gives all iterations: nothing is asked twice.
    lines = (output / "responses.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 6 * len(Plan().systems())
    assert {s.temperature for s in models.improver.samplings} == {0.7}


def test_an_interrupted_evaluation_asks_only_for_what_is_missing(helpdesk: RunConfig) -> None:
    with serving(policy=FakeEngine(context_length=2048, script=rude)) as (url, models):
        output, whole = run(helpdesk, url)
        asked = models.policy.started
        path = output / "responses.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        gone = [json.loads(line) for line in lines[-5:]]
        path.write_bytes(b"".join(lines[:-5]) + lines[-5][:20])
        again = run(helpdesk, url)[1]
        policy_calls = {"original": 1, "best_of_n": 4, "pit": 0, "pit_gated": 0, "score": 0}
        expected = sum(policy_calls.get(record["system"], 6) for record in gone)
        assert models.policy.started - asked == expected
        assert run(helpdesk, url)[1].startswith("6 held-out examples, 6 answered before")
    figures = [re.sub(r"(?m)^(\d+ held-out|answers:).*$", "", text) for text in (whole, again)]
    assert figures[0] == figures[1]


def test_a_temperature_is_that_of_improving_only(helpdesk: RunConfig) -> None:
    with serving(policy=FakeEngine(context_length=2048, script=rude)) as (url, models):
        run(helpdesk, url, temperature=0.3, examples=1)
        assert {s.temperature for s in models.improver.samplings} == {0.3}
        # Original 1, best-of 4 at the policy's own; Self-Refine 3 rubrics x 3 iterations x 2 turns at 0.3.
        given = [s.temperature for s in models.policy.samplings]
        assert (given.count(0.7), given.count(0.3)) == (5, 18)


def test_what_cannot_be_served_is_left_out_and_reported(helpdesk: RunConfig) -> None:
    """The policy is silent on one prompt: there is nothing to improve, and the others still count."""
    silent = PROMPTS[2]

    def script(chat: Sequence[Message]) -> str:
        return "" if chat[0]["content"] == silent else "It has color mud."

    with serving(policy=FakeEngine(context_length=2048, script=script)) as (url, _):
        output, text = run(helpdesk, url)
    report = json.loads((output / "report.json").read_text())["figures"]
    assert report["examples"] == 5
    assert list(report["left_out"].values()) == [1]
    assert "1 left out" in text and "empty" in text


def test_a_server_without_a_gap_reward_is_refused_at_once(helpdesk: RunConfig) -> None:
    from app.errors import ScoringUnavailable

    scorer = FakeScorer(failure=ScoringUnavailable("The scorer is down."))
    with serving(scorer=scorer) as (url, models), pytest.raises(TrainingError, match="cannot score"):
        run(helpdesk, url, deadline_s=0.5)
    assert models.policy.started == 0


def test_no_server_is_one_clear_message(helpdesk: RunConfig) -> None:
    with pytest.raises(TrainingError, match=r"no pit serve answers at http://127\.0\.0\.1:1"):
        run(helpdesk, "http://127.0.0.1:1", deadline_s=0.5)


def test_a_server_that_fails_midway_keeps_what_was_answered(helpdesk: RunConfig) -> None:
    from app.errors import EngineFailed

    improver = FakeEngine(context_length=2048, failure=EngineFailed("The engine died."))
    with serving(policy=FakeEngine(context_length=2048, script=rude), improver=improver) as (url, models):
        with pytest.raises(TrainingError, match="no example was answered by every system"):
            run(helpdesk, url)
        path = helpdesk.output / "evaluation" / "responses.jsonl"
        assert {json.loads(line).get("system") for line in path.read_text().splitlines()} == {
            None,
            "original",
        }
        models.improver.failure = None
        asked = models.policy.started
        output, _ = run(helpdesk, url)
        assert models.policy.started - asked == 6 * (3 * 3 * 2 + 4)  # no Original was asked for again
    assert json.loads((output / "report.json").read_text())["figures"]["examples"] == 6


def test_drafts_that_people_rewrote(tmp_path: Path) -> None:
    """The improver writes what the human wrote for half of the drafts; the reference is the draft."""
    pairs = [pair_of(f"p{i}", f"Who no what is item {i}?", f"What is item {i}?") for i in range(20)]
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, pairs)
    config = config_of(
        tmp_path,
        "data.format=chat_pairs",
        f"data.path={path}",
        f"data.heldout_path={path}",
        "data.heldout=10",
    )

    def script(chat: Sequence[Message]) -> str:
        number = int(re.findall(r"\d+", chat[1]["content"])[0])
        return f"What is item {number}?" if number % 2 else chat[1]["content"] + " or not"

    scorer = FakeScorer(value=lambda text: float(-len(text)))
    with serving(improver=FakeEngine(context_length=2048, script=script), scorer=scorer) as (url, models):
        output, text = run(config, url, examples=20)
        assert models.policy.started == 0
    figures = json.loads((output / "report.json").read_text())["figures"]
    ungated, gated = figures["edits"]["PIT ungated, 1"], figures["edits"]["PIT gated, 4"]
    assert (ungated["closer"], ungated["farther"], ungated["exact"]) == (50, 50, 50)
    assert (gated["closer"], gated["farther"], gated["equal"], gated["exact"]) == (50, 0, 50, 50)
    assert figures["label"]["accuracy"] == 1.0
    assert "MISS  closer to the human text" in text and "PASS  farther" in text


def test_the_toxicity_judge_never_sees_what_it_judges(tmp_path: Path) -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    training = [pair_of(f"t{i}", f"damn {words[i % 10]} {i}", f"dear {words[i % 10]} {i}") for i in range(40)]
    heldout = [pair_of(f"h{i}", f"damn {words[i]} today", f"dear {words[i]} today") for i in range(10)]
    write_pairs(tmp_path / "train.jsonl", [*training, *heldout])
    write_pairs(tmp_path / "dev.jsonl", heldout)
    config = config_of(
        tmp_path, "data.format=chat_pairs", f"data.path={tmp_path / 'train.jsonl'}",
        f"data.heldout_path={tmp_path / 'dev.jsonl'}", "data.heldout=10", "evaluation.judge=edit+toxicity",
    )  # fmt: skip
    improver = FakeEngine(context_length=2048, script=lambda chat: chat[1]["content"].replace("damn", "dear"))
    with serving(improver=improver, scorer=FakeScorer(value=lambda text: -float("damn" in text))) as (url, _):
        output, text = run(config, url, examples=10)
    figures = json.loads((output / "report.json").read_text())["figures"]
    final = figures["edits"][figures["headline"]]
    assert (final["both"], final["exact"]) == (100, 100)
    assert final["toxicity_before"] > 0.5 > final["toxicity_after"]
    assert "PASS  drafts that improve on toxicity and distance" in text


def test_a_judge_that_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, "data.format=hh_rlhf", "data.path=x")
    with pytest.raises(ConfigError, match="--judge edit"):
        run(config, "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="helpdesk"):
        run(config, "http://127.0.0.1:1", judge="gold")


# ---------------------------------------------------------------------------------------- a server of its own

STUB = """
import http.server, os, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.end_headers()
    def log_message(self, *_): pass
print("pid", os.getpid(), flush=True)
http.server.HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_server_is_stopped_whatever_happens(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        server([sys.executable, "-c", STUB], log, 30) as url,
    ):
        assert httpx.get(f"{url}/health/ready").status_code == 200
        pid = int(log.read_text().split()[1])
        raise RuntimeError("in the middle")
    assert not alive(pid)


def test_sigterm_to_the_evaluation_stops_its_server_too(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    program = (
        "import sys, time; from pathlib import Path; from training.serving import server\n"
        f"with server([sys.executable, '-c', {STUB!r}], Path({str(log)!r}), 30):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    pid = int(log.read_text().split()[1])
    assert alive(pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not alive(pid)
    process.stdout.close()


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    failing = [sys.executable, "-c", "print('no such checkpoint'); raise SystemExit(2)"]
    problem = r"(?s)ended with status 2.*no such checkpoint"
    with pytest.raises(TrainingError, match=problem), server(failing, log, 30):
        pass
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(TrainingError, match=r"was not ready within 0\.5 s"), server(silent, log, 0.5):
        pass


def test_checkpoints_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"policy is not a checkpoint.*pit-train run"):
        server_command(tmp_path)


def test_every_setting_that_changes_an_answer_is_in_the_header() -> None:
    assert set(asdict(Plan())) == {
        "iterations",
        "self_refine_iterations",
        "temperature",
        "seed",
        "from_draft",
    }
