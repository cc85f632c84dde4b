"""The whole evaluation against the real server over fakes."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from training.config import RunConfig, load_config
from training.data import PreferencePair, write_pairs
from training.errors import ConfigError, DataError, TrainingError
from training.evaluate import Options, evaluate, examples
from training.helpdesk import gold_score
from training.judges import ToxicityJudge
from training.systems import Plan

ROOT = Path(__file__).resolve().parents[2]


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


def test_a_prompt_that_training_or_calibration_saw_is_not_an_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By chance they rarely meet, so here every draw begins with the pairs of the training data."""
    config = config_of(tmp_path)
    known = synthetic.make_pairs(30, 999)

    def overlapping(count: int, seed: int, **rest: Any) -> list[PreferencePair]:
        return known + synthetic.make_pairs(count, seed, **rest)

    monkeypatch.setattr("training.evaluate.make_pairs", overlapping)
    found = {pair.prompt[0]["content"] for pair in examples(config, 20, 1)}
    assert len(found) == 20
    assert not found & {pair.prompt[0]["content"] for pair in known}


def pair_of(name: str, draft: str, *rewrites: str) -> PreferencePair:
    prompt = (Message(role="user", content="Write one comment."),)
    return PreferencePair(name, prompt, rewrites[0], draft, "test", rewrites)


def test_examples_of_a_file_gather_the_rewrites_of_one_draft(tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    pairs = [pair_of(f"p{i}", f"draft {i}", f"human {i}") for i in range(12)]
    write_pairs(path, [*pairs, pair_of("again", "draft 11", "another human")])
    config = config_of(
        tmp_path,
        "reader=null",
        "data.format=chat_pairs",
        f"data.path={path}",
        f"data.heldout_path={path}",
        "data.heldout=10",
    )
    found = examples(config, 99, 1)
    assert [pair.id for pair in found] == [f"p{i}" for i in range(12)]
    assert found[11].references == ("human 11", "another human")


def test_without_prepared_data_the_error_says_what_writes_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, "reader=null", "data.format=chat_pairs", "data.path=x.jsonl")
    with pytest.raises(DataError, match="pit-train run"):
        examples(config, 5, 1)


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
    listener.listen()  # from now on a connection waits until the server takes it
    thread = threading.Thread(target=lambda: asyncio.run(instance.serve(sockets=[listener])))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        deadline = time.monotonic() + 60
        while httpx.get(f"{url}/health/ready", timeout=60).status_code != 200 and time.monotonic() < deadline:
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


def test_self_refine_is_represented_by_its_best_rubric(helpdesk: RunConfig) -> None:
    """Only the rubric "polite" helps, and it makes every answer perfect: that one must be compared."""

    def script(chat: Sequence[Message]) -> str:
        helped = chat[-1]["content"] == REFINE_TURN and synthetic.RUBRICS["polite"] in chat[2]["content"]
        return perfect(chat) if helped else rude(chat)

    policy = FakeEngine(
        context_length=2048, script=script, defaults=replace(FakeEngine().defaults, max_tokens=80)
    )
    with serving(policy=policy) as (url, _):
        output, _ = run(helpdesk, url)
    report = json.loads((output / "report.json").read_text())["figures"]
    by_name = {one["name"]: one for one in report["comparisons"]}
    assert report["best_rubric"] == ["self_refine:polite"] * 3
    assert by_name["Self-Refine vs Original"]["rate"]["delta"] == 100


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
        "reader=null",
        "data.format=chat_pairs",
        f"data.path={path}",
        f"data.heldout_path={path}",
        "data.heldout=10",
        "evaluation.bars={closer: 70, farther: 10}",
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


def test_the_toxicity_judge_never_sees_what_it_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[PreferencePair] = []
    original = ToxicityJudge.__init__

    def spy(self: ToxicityJudge, pairs: Sequence[PreferencePair], seed: int = 0) -> None:
        fitted.extend(pairs)
        original(self, pairs, seed)

    monkeypatch.setattr(ToxicityJudge, "__init__", spy)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    training = [pair_of(f"t{i}", f"damn {words[i % 10]} {i}", f"dear {words[i % 10]} {i}") for i in range(40)]
    heldout = [pair_of(f"h{i}", f"damn {words[i]} today", f"dear {words[i]} today") for i in range(10)]
    write_pairs(tmp_path / "train.jsonl", [*training, *heldout])
    write_pairs(tmp_path / "dev.jsonl", heldout)
    config = config_of(
        tmp_path, "reader=null", "data.format=chat_pairs", f"data.path={tmp_path / 'train.jsonl'}",
        f"data.heldout_path={tmp_path / 'dev.jsonl'}", "data.heldout=10",
        "evaluation={judge: edit+toxicity, bars: {both: 50}}",
    )  # fmt: skip
    improver = FakeEngine(context_length=2048, script=lambda chat: chat[1]["content"].replace("damn", "dear"))
    with serving(improver=improver, scorer=FakeScorer(value=lambda text: -float("damn" in text))) as (url, _):
        output, text = run(config, url, examples=10)
    figures = json.loads((output / "report.json").read_text())["figures"]
    assert {pair.id for pair in fitted} == {pair.id for pair in training}
    final = figures["edits"][figures["headline"]]
    assert (final["both"], final["exact"]) == (100, 100)
    assert final["toxicity_before"] > 0.5 > final["toxicity_after"]
    assert "PASS  less toxic than the draft, and closer to the human text" in text
    joint = figures["joint"]["systems"]
    assert joint["human"]["content"] == 100 and joint["the draft"]["joint"]["mean"] == 0
    assert joint["PIT"]["non_toxic"] == 100 and "Joint metric" in text


def test_a_judge_that_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, "reader=null", "data.format=hh_rlhf", "data.path=x")
    with pytest.raises(ConfigError, match="--judge edit"):
        run(config, "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="helpdesk"):
        run(config, "http://127.0.0.1:1", judges=("gold",))
