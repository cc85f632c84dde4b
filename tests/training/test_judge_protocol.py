"""Whatever judges, a contest is judged the same way: no matter who stands first, and nothing is lost."""

from collections.abc import Sequence

import pytest

from training.data import Message, PreferencePair
from training.errors import DataError
from training.helpdesk import gold_score
from training.judges import (
    Contest,
    Cost,
    Judge,
    ScoreJudge,
    Verdict,
    contests,
    edit_judge,
    gold_judge,
    settings_hash,
    win_rate,
)
from training.synthetic import make_pairs


def pair(name: str, chosen: str = "good", rejected: str = "bad", *references: str) -> PreferencePair:
    return PreferencePair(name, (Message(role="user", content="Say it."),), chosen, rejected, "t", references)


def test_the_gold_judge_decides_by_the_gold_score() -> None:
    examples = make_pairs(40, seed=3)
    asked = contests(examples, [x.chosen for x in examples], [x.rejected for x in examples])
    judge: Judge = gold_judge()
    verdicts = judge.judge(asked)
    expected = [
        [gold_score(x.prompt[-1]["content"], text) for text in (x.chosen, x.rejected)] for x in examples
    ]
    assert [verdict.scores for verdict in verdicts] == [tuple(each) for each in expected]
    assert [verdict.value for verdict in verdicts] == [(a > b) - (b > a) for a, b in expected]
    turned = judge.judge([Contest(c.example, c.second, c.first) for c in asked])
    assert [-(verdict.value or 0) for verdict in turned] == [verdict.value for verdict in verdicts]
    assert judge.cost().contests == 80


def test_the_edit_judge_prefers_what_is_nearer_to_any_human_text() -> None:
    example = pair("a", "The bus is late.", "bus late!!", "The bus is late.", "The bus came late.")
    values = edit_judge().judge(
        [
            Contest(example, "The bus came late", "bus late!!"),
            Contest(example, "bus late!!", " The bus is late. "),
            Contest(example, "The bus is late.", "The bus came late."),
        ]
    )
    assert [verdict.value for verdict in values] == [1, -1, 0]


def test_a_response_is_scored_once_and_near_scores_tie() -> None:
    asked: list[str] = []

    def score(rows: Sequence[tuple[PreferencePair, str]]) -> list[float]:
        asked.extend(text for _, text in rows)
        return [float(len(text)) for _, text in rows]

    judge = ScoreJudge("length", score, tolerance=1.0)
    example = pair("a")
    found = judge.judge(
        [Contest(example, "aaa", "a"), Contest(example, "aa", "aaa"), Contest(example, "a", "aaa")]
    )
    assert [verdict.value for verdict in found] == [1, 0, -1]
    assert sorted(asked) == ["a", "aa", "aaa"]
    assert judge.scores([example], ["aa"]) == [2.0]
    assert len(asked) == 3
    # The same text of another example may be worth something else.
    judge.judge([Contest(pair("b"), "a", "aa")])
    assert len(asked) == 5


def test_contests_without_a_verdict_are_counted_apart() -> None:
    verdicts = [Verdict(1), Verdict(1), Verdict(-1), Verdict(0, "the orders disagree")]
    judged = win_rate([*verdicts, Verdict(None, "unreadable"), Verdict(None, "unreadable")])
    assert (judged.rate.n, judged.rate.win, judged.rate.lose, judged.rate.delta) == (4, 50, 25, 25)
    assert judged.missing == {"unreadable": 2}
    with pytest.raises(DataError, match="no verdict to count: 1 unreadable"):
        win_rate([Verdict(None, "unreadable")])


def test_the_settings_hash_is_that_of_what_decides() -> None:
    one, same = ScoreJudge("m", len, {"a": 1, "b": 2}), ScoreJudge("m", len, {"b": 2, "a": 1})  # type: ignore[arg-type]
    other = ScoreJudge("m", len, {"a": 1, "b": 3})  # type: ignore[arg-type]
    assert settings_hash(one) == settings_hash(same) != settings_hash(other)


def test_a_cost_says_what_there_is() -> None:
    assert str(Cost(contests=3)) == "3 contests"
    assert str(Cost(5, 2, 6, 900, 60, 0.031)) == (
        "5 contests, 2 known already, 6 calls, 900 tokens read, 60 written, 0.03 in money"
    )
