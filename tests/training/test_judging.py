"""Several judges on the same answers: each reports, no system is asked again, what costs is confirmed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.fakes import FakeEngine
from tests.tiny import make_tiny_checkpoint
from tests.training.judging_server import Server, api_servers, longer
from tests.training.test_evaluate import config_of, rude, run, serving
from training.config import RunConfig, load_config
from training.errors import ConfigError
from training.evaluate import _from_draft
from training.judges.people import Said, VerdictFile, keep_tasks, make_tasks, read_answers

ROOT = Path(__file__).resolve().parents[2]


def politer(chat: Any) -> str:
    """An improver that adds a word each time: the longer response is PIT's."""
    return f"{chat[1]['content']} Please!"


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """Four examples that every system answered, evaluated with gold; the server is gone."""
    config = config_of(tmp_path_factory.mktemp("judging"))
    policy = FakeEngine(context_length=2048, script=rude)
    improver = FakeEngine(context_length=2048, script=politer)
    with serving(policy=policy, improver=improver) as (url, _):
        output, _ = run(config, url, examples=4)
    # From now on nothing answers there: whoever asks a system fails.
    return config, output


@pytest.fixture
def api() -> Iterator[Server]:
    with api_servers() as start:
        yield start(longer)


def again(answered: tuple[RunConfig, Path], *overrides: str, **options: Any) -> tuple[Path, str]:
    """The same evaluation, with other judges, where no server is."""
    config, output = answered
    found = load_config(
        ROOT / "training/configs/demo.yaml",
        ["data.pairs=60", "data.heldout=30", f"output={config.output}", *overrides],
    )
    url = json.loads((output / "responses.jsonl").read_text().splitlines()[0])["settings"]["models"]
    return run(found, url, examples=4, **options)


def test_a_language_model_judges_answers_that_gold_judged_and_a_second_time_for_nothing(
    answered: tuple[RunConfig, Path], api: Server
) -> None:
    questions: list[str] = []

    def confirm(question: str) -> bool:
        questions.append(question)
        return True

    settings = (f"evaluation.llm.url={api.url}", "evaluation.llm.model=m", "evaluation.llm.examples=3")
    output, text = again(answered, *settings, judges=("gold", "llm"), confirm=confirm)
    assert "4 held-out examples, 4 answered before" in text
    report = json.loads((output / "report.llm.json").read_text())
    by_name = {one["name"]: one for one in report["judgements"]}
    # The longer response wins: PIT's has more words than the policy's.
    assert by_name["PIT ungated vs Original"]["rate"]["delta"] == 100
    assert by_name["PIT ungated vs Original"]["rate"]["n"] == 3
    # A table is not squeezed into a narrow terminal.
    assert re.search(r"PIT ungated vs Original +│ +100\.0 │", text)
    assert report["cost"]["calls"] == len(api.bodies)
    assert questions and f"{len(api.bodies)} calls" in questions[0]
    verdicts = [json.loads(line) for line in (output / "verdicts.llm.jsonl").read_text().splitlines()]
    assert len(verdicts) == 3 * len(by_name)
    assert "gold and llm" in (output / "judges.md").read_text()
    assert "PIT ungated vs Original" in (output / "report.llm.md").read_text()
    assert (output / "report.json").exists()
    asked = len(api.bodies)
    again(answered, *settings, judges=("llm",), confirm=lambda question: False)
    assert len(api.bodies) == asked and len(questions) == 1


def test_what_costs_is_not_begun_without_a_yes(answered: tuple[RunConfig, Path], api: Server) -> None:
    settings = (f"evaluation.llm.url={api.url}", "evaluation.llm.model=other")
    with pytest.raises(ConfigError, match="was not confirmed; nothing was asked"):
        again(answered, *settings, judges=("llm",))
    assert api.bodies == []


def test_a_reward_model_judges_what_is_named(answered: tuple[RunConfig, Path], tmp_path: Path) -> None:
    path = make_tiny_checkpoint(tmp_path / "reward", "reward", context_length=1024)
    output, _ = again(
        answered, f"evaluation.reward_model.path={path}", "evaluation.compare=[PIT ungated vs Original]",
        "evaluation.judge=[reward_model]",
    )  # fmt: skip
    report = json.loads((output / "report.reward_model.json").read_text())
    assert [one["name"] for one in report["judgements"]] == ["PIT ungated vs Original"]
    assert report["judgements"][0]["rate"]["n"] == 4 and not report["judgements"][0]["missing"]
    assert report["settings"]["model"].startswith("sha256:")
    with pytest.raises(ConfigError, match=r"no 'PIT vs Nobody'; there are 'Original vs y_w'"):
        again(answered, "evaluation.compare=[PIT vs Nobody]", judges=("gold",))


def test_before_anybody_has_judged_the_error_says_how(
    answered: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"pit-train judge serve .*texts\.jsonl --output"):
        again(answered, f"evaluation.people={tmp_path / 'nobody'}", judges=("people",))


def test_people_judge_the_texts_that_the_evaluation_wrote(answered: tuple[RunConfig, Path]) -> None:
    _, output = answered
    tasks = make_tasks(read_answers([output / "texts.jsonl"]), ["PIT ungated vs Original"], 3, 1)
    keep_tasks(output / "people", tasks)
    with VerdictFile(output / "people") as file:
        for task in tasks.tasks[:2]:
            words = [len(text.split()) for text in task.texts]
            file.add(Said("ann", task.key, 1 if words[0] > words[1] else -1), 0)
    again(answered, "evaluation.compare=[PIT ungated vs Original]", judges=("people",))
    report = json.loads((output / "report.people.json").read_text())
    judged = report["judgements"][0]
    assert (judged["rate"]["n"], judged["rate"]["delta"]) == (2, 100)
    assert judged["missing"] == {"not judged": 2}


def test_answers_that_were_kept_with_the_name_of_a_judge_are_judged_by_any(
    answered: tuple[RunConfig, Path],
) -> None:
    """As earlier versions kept them."""
    _, output = answered
    path = output / "responses.jsonl"
    before = path.read_text()
    header, rest = before.split("\n", 1)
    record = json.loads(header)
    record["settings"]["judge"] = "gold"
    path.write_text(json.dumps(record) + "\n" + rest)
    try:
        again(answered, judges=("gold",))
    finally:
        path.write_text(before)


def test_a_judge_without_settings_is_refused_before_any_work(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    for judge, needed in (("llm", "evaluation.llm.url"), ("reward_model", "evaluation.reward_model.path")):
        with pytest.raises(ConfigError, match=needed):
            run(config, "http://127.0.0.1:1", judges=(judge,))
    with pytest.raises(ConfigError, match="one of them"):
        run(config, "http://127.0.0.1:1", judges=("gold", "edit"))


def test_data_without_a_judge_of_its_own_starts_from_the_policy(tmp_path: Path) -> None:
    """HH-RLHF judged by a model: the policy answers, as in the paper; drafts are for data that has them."""

    def start(format: str, *judges: Any, **evaluation: Any) -> bool:
        given = [f"evaluation.{name}={value}" for name, value in evaluation.items()]
        config = config_of(tmp_path, "reader=null", f"data.format={format}", "data.path=x", *given)
        return _from_draft(config, judges)

    assert [start("hh_rlhf", "llm"), start("hh_rlhf", "edit"), start("chat_pairs", "llm")] == [
        False,
        True,
        True,
    ]
    assert start("chat_pairs", "llm", start="policy") is False
    assert start("hh_rlhf", "llm", start="draft") is True
    with pytest.raises(ConfigError, match="one of them"):
        start("chat_pairs", "edit", start="policy")
