"""Studies of people's data against the real server over fakes: rewritten drafts, and preferences."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.engines.base import Message
from tests.app.fakes import FakeEngine, FakeScorer
from tests.training.helpers import TINY, publish_tiny
from tests.training.judging_server import api_servers, longer
from tests.training.test_judge_joint import pairs as rude_pairs
from tests.training.test_studies import ROOT, checkpoint, run, served, study_of, table, trained
from training.data import PreferencePair, write_pairs
from training.errors import ConfigError
from training.judges import Contest, win_rate
from training.pipeline import stages
from training.prepare import prepare_data, read_part
from training.studies.config import StudyConfig
from training.studies.figures import read_result
from training.studies.preferences import words_judge
from training.studies.systems import System

ASK = (Message(role="user", content="Ask one question."),)


def edits_of(
    tmp_path: Path, training: Sequence[PreferencePair], dev: Sequence[PreferencePair], *overrides: str
) -> StudyConfig:
    write_pairs(tmp_path / "train.jsonl", training)
    write_pairs(tmp_path / "dev.jsonl", dev)
    files = [f"data.path={tmp_path / 'train.jsonl'}", f"data.heldout_path={tmp_path / 'dev.jsonl'}"]
    return study_of(
        tmp_path, "edits", run=ROOT / "training/configs/disfl_qa.yaml", examples=20,
        overrides=[*files, "data.heldout=10", f"output={tmp_path / 'run'}", *overrides],
    )  # fmt: skip


def questions(count: int) -> list[PreferencePair]:
    return [
        PreferencePair(f"q{i}", ASK, f"What is item {i}?", f"Who no what is item {i}?", "made")
        for i in range(count)
    ]


def half_right(chat: Sequence[Message]) -> str:
    """Mends the questions with odd numbers, and adds to the others what nobody wrote."""
    number = int(re.findall(r"\d+", chat[1]["content"])[0])
    return f"What is item {number}?" if number % 2 else chat[1]["content"] + " or not"


class SecondTry:
    """As `half_right`, but of every fourth draft the second try is right too, once."""

    def __init__(self) -> None:
        self.tries = Counter[str]()

    def __call__(self, chat: Sequence[Message]) -> str:
        draft = chat[1]["content"]
        number = int(re.findall(r"\d+", draft)[0])
        self.tries[draft] += 1
        return f"What is item {number}?" if not number % 4 and self.tries[draft] == 2 else half_right(chat)


def figures_of(row: Sequence[Any]) -> list[float]:
    return [cell.value for cell in row]


def test_drafts_of_the_data_are_mended_and_measured_by_what_people_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The improver is right on half of the drafts and the gate knows it: the figures are known beforehand."""
    study = edits_of(tmp_path, questions(40), questions(20))
    improver = FakeEngine(context_length=2048, script=SecondTry())
    scorer = FakeScorer(value=lambda text: float(-len(text)))
    with served(monkeypatch, study, improver=improver, scorer=scorer) as models:
        path, text = run(study)
        assert models.policy.started == 0  # nobody asked it for drafts
        improvers = [Path(each[each.index("--improver") + 1]).name for each in models.commands]
    assert sorted(improvers) == ["improver", "improver_sft"]
    rows = table(path, "By distance to the human text")
    # closer, farther, Δ, exact
    assert figures_of(rows["PIT, one iteration without a gate"])[:4] == [50, 50, 0, 50]
    assert figures_of(rows["PIT as served"])[:4] == [50, 0, 50, 50]
    assert figures_of(rows["the draft"])[:5] == [0, 0, 0, 0, 100]
    assert figures_of(rows["people (y_w)"])[:4] == [100, 0, 100, 100]
    against = table(path, "PIT as served against the others")
    differences = [against[f"PIT as served vs {name}"][0].value for name in ("the draft", "people (y_w)")]
    assert differences == [50, -50] and against["PIT as served vs SFT improver as served"][0].value == 0
    result = read_result(path)
    assert {bar.name: bar.passed for bar in result.figures.bars} == {
        "exactly the human text": True,
        "closer to the human text than the draft": False,
        "farther from the human text than the draft": True,
        "PIT above the improver after SFT alone, exact": False,
    }
    assert result.settings["judge"] == "edit" and "MISS  closer" in text
    loops = table(path, "By iteration")
    # As served it ends at the first rejection; the loop of the table goes on, and tries again.
    assert [loops[f"PIT, gated, {i}"][0].value for i in (1, 2, 3)] == [50, 75, 75]
    assert loops["PIT, gated, 2"][1].value == 25 and loops["SFT improver, gated, 3"][0].value == 50
    gate = table(path, "What the gate says")
    assert (gate["PIT, gated, 1"][0].value, gate["PIT, gated, 1"][1].value) == (50, 100)
    assert result.figures.examples[0].prompt == "People wrote: What is item 0?"


def test_the_joint_metric_part_by_part_beside_the_draft_and_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The improver writes what people wrote, and so does the rule on these drafts: above the draft, not above
    the rule."""
    training = rude_pairs()
    dev = training[::12]
    mended = {pair.rejected: pair.chosen for pair in dev}
    study = edits_of(tmp_path, training, dev, "evaluation={judge: edit+toxicity, bars: {both: 50}}")
    improver = FakeEngine(context_length=2048, script=lambda chat: mended.get(chat[1]["content"], "The bus."))
    scorer = FakeScorer(value=lambda text: float(text in mended.values()))
    with served(monkeypatch, study, improver=improver, scorer=scorer):
        path, _ = run(study)
    rows = {name: figures_of(row) for name, row in table(path, "The joint metric and its parts").items()}
    # joint, not toxic, content, kept, fluent
    assert rows["PIT as served"][:3] == [100, 100, 100] and rows["PIT as served"][4] == 100
    assert rows["the draft"][:2] == [0, 0] and rows["the draft"][3:] == [100, 100]
    assert rows["a rule: without swear words"][0] == 100 and rows["people (y_w)"][0] == 100
    result = read_result(path)
    assert [bar.passed for bar in result.figures.bars] == [True, True, False, False]
    assert result.figures.bars[1].figure.startswith("+100.0") and result.settings["judge"] == "edit+toxicity"
    assert {example.after_score for example in result.figures.examples} == {100}


def preferences_of(tmp_path: Path, *overrides: str) -> StudyConfig:
    """A study of a run with real, untrained reward models."""
    study = study_of(
        tmp_path, "preferences", run=TINY, seeds=[3], iterations=2,
        overrides=[f"output={tmp_path / 'run'}", *overrides],
    )  # fmt: skip
    config = study.run_config(3)
    if not config.output.exists():
        prepare_data(config)
        for name in ("gap_reward", "reward"):
            publish_tiny(config, name)
        for stage in stages(config):
            if not (config.output / stage.name).exists():
                checkpoint(config.output / stage.name, config.digest(stage.name), stage.name)
    return study


def test_preferences_are_foretold_and_contests_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An improver that writes y_w: PIT ties with it, and beats the Original as often as y_w does."""
    study = preferences_of(tmp_path)
    written: dict[str, str] = {}
    improver = FakeEngine(context_length=2048, script=lambda chat: written[chat[0]["content"]])
    scorer = FakeScorer(value=lambda text: float(text in written.values()), context_length=4096)
    with served(monkeypatch, study, improver=improver, scorer=scorer):
        from training.evaluate import examples

        pairs = examples(study.run_config(3), study.examples, study.example_seed)
        written |= {pair.prompt[0]["content"]: " ".join(pair.chosen.split()) for pair in pairs}
        improver.defaults = improver.defaults.__class__(0.7, max_tokens=200)
        path, text = run(study)
    foretold = table(path, "What people preferred, foretold")
    assert list(foretold) == ["gap reward (centred)", "pointwise reward", "length", "bag of words"]
    assert all(0 <= row[0].low <= row[0].value <= row[0].high <= 100 for row in foretold.values())
    judged = table(path, "Judged by bag of words")
    assert (judged["PIT vs y_w"][0].value, judged["PIT vs y_w"][1].value) == (0, 0)
    assert judged["PIT vs Original"][2].value == -judged["Original vs y_w"][2].value
    # The policy repeats itself.
    assert judged["best-of-4 vs Original"][2].value == 0 and judged["PIT vs Original"][4] == "6"
    assert read_result(path).settings["judge"] == "bag of words"
    assert "gap reward above chance" in text
    known = read_part(study.run_config(3), "reward")
    verdicts = words_judge(study.run_config(3)).judge([Contest(p, p.chosen, p.rejected) for p in known])
    assert win_rate(verdicts).rate.low > 0  # on the pairs that it was fitted on
    assert len((study.output / "preferences/texts.jsonl").read_text().splitlines()) == 6


def test_a_judge_that_costs_is_asked_after_a_yes_and_answers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = FakeEngine(context_length=2048, script=lambda chat: "Short.")
    improver = FakeEngine(context_length=2048, script=lambda chat: "This one is longer.")
    scorer = FakeScorer(value=lambda text: float(len(text)), context_length=4096)
    with api_servers() as start:
        api = start(longer)
        llm = f"evaluation.llm={{url: '{api.url}', model: m, examples: 4}}"
        study = preferences_of(tmp_path, "evaluation.judge=llm", llm)
        with served(monkeypatch, study, policy=policy, improver=improver, scorer=scorer):
            with pytest.raises(ConfigError, match="llm was not confirmed"):
                run(study)
            assert not api.bodies and not study.result.exists()
            path, _ = run(study, confirm=lambda question: "calls" in question)
            asked = len(api.bodies)
            run(study, again=True)  # nothing new to ask, and so no question
            assert asked and len(api.bodies) == asked
    judged = table(path, "Judged by llm")
    assert (judged["PIT vs Original"][0].value, judged["PIT vs Original"][4]) == (100, "4")
    assert table(path, "Judged by bag of words")["PIT vs Original"][4] == "6"
    assert read_result(path).settings["judge"] == "llm, bag of words"


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("edits", [], "drafts that people rewrote"),
        ("main", ["reader=null", "data.format=hh_rlhf", "data.path=x"], "choose kind edits or preferences"),
        ("preferences", ["evaluation.judge=llm"], "judge llm has no settings"),
    ],
)
def test_a_study_that_does_not_fit_the_data_is_refused_before_any_training(
    tmp_path: Path, kind: str, overrides: list[str], message: str
) -> None:
    study = study_of(tmp_path, kind, overrides=[f"output={tmp_path / 'run'}", *overrides])
    with pytest.raises(ConfigError, match=message):
        run(study)
    assert not (tmp_path / "run").exists()


def test_systems_that_begin_with_the_policys_answer_keep_the_answers_they_have() -> None:
    """Names, settings and seeds of older answers: what the data's drafts added must not change them."""
    older, newer = System("pit", iterations=3, gated=True), System("pit", iterations=3, start="data")
    assert "start" not in older.settings() and newer.settings()["start"] == "data"
    assert older.label == "pit-gated" and newer.label == "pit-data"
    pair = questions(1)[0]
    assert newer.draft is None and newer.request(pair, pair.rejected, 1)[1]["reference"] == pair.rejected


def test_a_run_that_is_not_the_studys_first_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = edits_of(tmp_path, questions(40), questions(20)).model_copy(update={"seeds": (7, 8)})
    trained(study.run_config(8))
    improver = FakeEngine(context_length=2048, script=half_right)
    with served(monkeypatch, study, improver=improver):
        path, _ = run(study)
    text = next(t.text for t in read_result(path).figures.tables if t.title.startswith("By distance"))
    assert text.startswith("n = 40 drafts")
