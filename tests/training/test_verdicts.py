"""What an evaluation keeps and computes, by values computed by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.improve.turns import FEEDBACK_TURN, REFINE_TURN
from training import synthetic
from training.answers import AnswerFile, responses, set_aside, tokens_after, until_first_rejection
from training.bars import edit_bars
from training.errors import ConfigError
from training.judges.settings import EditBars, EvaluationConfig
from training.systems import Plan, call_seed, scored_order
from training.verdicts import (
    agreement,
    compare_systems,
    edits,
    expected_calibration_error,
    iteration_rows,
    length_controlled,
    scored_candidates,
)


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


def test_drafts_are_held_against_the_bars_that_the_configuration_names() -> None:
    found = edits([4, 4, 4, 4], [0, 2, 4, 6], ["d"] * 4, ["h", "e", "d ", "f"], ([0.9] * 4, [0.1] * 4))
    assert (found.exact, found.closer, found.farther, found.both) == (25, 50, 25, 50)

    def passed(wanted: EditBars) -> list[bool]:
        return [bar.passed for bar in edit_bars(found, wanted)]

    assert passed(EditBars()) == []
    assert passed(EditBars(exact=25, closer=50, farther=25, both=49)) == [True] * 4
    assert passed(EditBars(exact=26, closer=51, farther=24, both=50)) == [False] * 4
    without = replace(found, both=None)  # another judge, by --judge, does not say what is toxic
    assert [bar.name for bar in edit_bars(without, EditBars(exact=25, both=49))] == ["exactly the human text"]
    with pytest.raises(ValidationError, match=r"bars\.both needs judge: edit\+toxicity"):
        EvaluationConfig(bars=EditBars(both=50))


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
