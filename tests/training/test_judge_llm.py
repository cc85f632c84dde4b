"""The LLM judge against a server that judges, fails, cuts connections and talks nonsense."""

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.judging_server import Reply, Server, api_servers, completion, longer, responses_in
from training.data import Message, PreferencePair
from training.errors import ConfigError, TrainingError
from training.judges import Contest, settings_hash
from training.judges.llm import LlmJudge, read_verdict
from training.judges.settings import LlmSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Server]]:
    with api_servers() as start:
        yield start


def contest(first: str, second: str, prompt: str = "Say it.") -> Contest:
    messages = (Message(role="user", content=prompt),)
    return Contest(PreferencePair("x", messages, "good", "bad", "test"), first, second)


def judge_of(server: Server, tmp_path: Path, **settings: Any) -> LlmJudge:
    given = LlmSettings(url=server.url, model="m", **settings)
    return LlmJudge(given, tmp_path / "cache.sqlite", first_pause_s=0.01)


def test_each_contest_is_judged_in_both_orders(serve: Any, tmp_path: Path) -> None:
    server = serve(longer)
    judge = judge_of(server, tmp_path)
    verdicts = judge.judge([contest("long one", "short"), contest("a", "bb"), contest("same", "same")])
    assert [verdict.value for verdict in verdicts] == [1, -1, 0]
    assert verdicts[2].reason == "the same text"
    assert {responses_in(body) for body in server.bodies} == {
        ("long one", "short"), ("short", "long one"), ("a", "bb"), ("bb", "a"),
    }  # fmt: skip
    assert "user: Say it." in server.bodies[0]["messages"][0]["content"]
    assert (judge.cost().calls, judge.cost().prompt_tokens, judge.cost().completion_tokens) == (4, 400, 28)


def test_a_judge_that_looks_at_the_place_alone_gives_ties(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: completion("Verdict: A"))
    verdict = judge_of(server, tmp_path).judge([contest("a", "b")])[0]
    assert (verdict.value, verdict.reason) == (0, "the two orders disagree")
    half = serve(
        lambda number, body: completion("Verdict: tie" if responses_in(body)[0] == "a" else "Verdict: B")
    )
    verdict = judge_of(half, tmp_path / "half").judge([contest("a", "b")])[0]
    assert (verdict.value, verdict.reason) == (0, "the two orders disagree")


def test_an_unreadable_verdict_is_none_and_is_not_asked_again(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: completion("I like both." if number % 2 else None))
    for _ in range(2):
        verdict = judge_of(server, tmp_path).judge([contest("a", "b")])[0]
        assert (verdict.value, verdict.reason) == (None, "unreadable verdict")
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Because.\nVerdict: A", 1),
        ("**Verdict:** B", -1),
        ("verdict: tie.", 0),
        ("Verdict: [[A]]", 1),
        ("Verdict: A? No. Verdict: B", -1),
        ("After all I choose [[B]]", -1),
        (" A.", 1),
        ("tie", 0),
        ("Verdict: Apples", None),
        ("A is better than B", None),
        ("Verdict:", None),
        ("", None),
    ],
)
def test_reading_a_verdict(text: str, value: int | None) -> None:
    assert read_verdict(text) == value


def test_a_response_cannot_take_the_place_of_the_other(serve: Any, tmp_path: Path) -> None:
    server = serve(longer)
    judge_of(server, tmp_path).judge([contest("see {second}", "{first} {conversation} is longer")])
    assert set(map(responses_in, server.bodies)) == {
        ("see {second}", "{first} {conversation} is longer"),
        ("{first} {conversation} is longer", "see {second}"),
    }


# ---------------------------------------------------------------------------------------- cost, cache


def test_the_estimate_is_what_is_then_spent_at_most_and_a_second_run_asks_nothing(
    serve: Any, tmp_path: Path
) -> None:
    server = serve(longer)
    asked = [contest("aa", "b"), contest("b", "aa"), contest("same", "same"), contest("ccc", "b")]
    judge = judge_of(server, tmp_path, max_tokens=50, prices={"prompt": 2.0, "completion": 10.0})
    before = judge.estimate(asked)
    # The second contest is the first one turned round: its questions are the same.
    assert (before.contests, before.calls, before.known, before.completion_tokens) == (4, 4, 1, 200)
    assert before.money == pytest.approx((before.prompt_tokens * 2 + 200 * 10) / 1e6)
    assert server.bodies == []
    verdicts = judge.judge(asked)
    assert [verdict.value for verdict in verdicts] == [1, -1, 0, 1]
    sent = sum(len(body["messages"][0]["content"]) for body in server.bodies)
    assert before.prompt_tokens == sent // 4
    assert judge.cost().calls == len(server.bodies) == 4
    assert judge.cost().money == pytest.approx((400 * 2 + 28 * 10) / 1e6)
    again = judge_of(server, tmp_path, max_tokens=50)
    assert again.estimate(asked).calls == 0 and again.estimate(asked).known == 4
    assert again.judge(asked) == verdicts
    assert len(server.bodies) == 4 and again.cost().calls == 0


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"extra": {"seed": 2}}, {"prompt": "other"}])
def test_other_settings_are_another_judge(serve: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    server = serve(longer)
    if "prompt" in change:
        path = tmp_path / "prompt.txt"
        path.write_text(
            "{conversation} <response_A>\n{first}\n</response_A> <response_B>\n{second}\n</response_B>"
        )
        change = {"prompt": path}
    one, other = judge_of(server, tmp_path), judge_of(server, tmp_path, **change)
    one.judge([contest("a", "bb")])
    other.judge([contest("a", "bb")])
    assert len(server.bodies) == 4
    assert settings_hash(one) != settings_hash(other)


def test_a_killed_run_keeps_every_answer_that_came(serve: Any, tmp_path: Path) -> None:
    """Killed with -9 in the middle of 40 questions: the next run asks the others only."""
    release = threading.Event()

    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if number >= 11:
            release.wait(60)
        return longer(number, body)

    server = serve(reply)
    code = f"""
from pathlib import Path
from tests.training.test_judge_llm import contest
from training.judges.llm import LlmJudge
from training.judges.settings import LlmSettings
settings = LlmSettings(url={server.url!r}, model="m", concurrency=1)
judge = LlmJudge(settings, Path({str(tmp_path)!r}) / "cache.sqlite")
judge.judge([contest("a" * i, "b" * (i + 1)) for i in range(1, 21)])
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while len(server.bodies) < 12 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    finally:
        process.kill()
        process.wait(60)
        release.set()
    assert len(server.bodies) == 12
    asked = [contest("a" * i, "b" * (i + 1)) for i in range(1, 21)]
    verdicts = judge_of(server, tmp_path).judge(asked)
    assert [verdict.value for verdict in verdicts] == [-1] * 20
    assert len(server.bodies) - 12 == 40 - 11


def test_a_cache_that_is_something_else_is_refused(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_text("not a database, but long enough to be read as one" * 40)
    with pytest.raises(ConfigError, match="not a file of kept answers"):
        judge_of(serve(longer), tmp_path).estimate([contest("a", "b")])


def test_a_cache_that_cannot_be_written_stops_the_judge_with_a_reason(serve: Any, tmp_path: Path) -> None:
    judge = judge_of(serve(longer), tmp_path)
    judge.estimate([contest("a", "bb")])
    with sqlite3.connect(tmp_path / "cache.sqlite") as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON answers BEGIN SELECT RAISE(ABORT, 'x'); END")
    with pytest.raises(TrainingError, match="the disk has room"):
        judge.judge([contest("a", "bb")])


# ---------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "fault",
    [(429, {}), (500, {}), (503, b"busy"), (0, None), (200, b"nonsense"), (200, {"choices": []}), (200, [])],
)
def test_what_passes_is_tried_again(serve: Any, tmp_path: Path, fault: tuple[int, Any]) -> None:
    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return fault if number in (0, 1, 3) else longer(number, body)

    server = serve(reply)
    judge = judge_of(server, tmp_path, concurrency=1)
    assert judge.judge([contest("aa", "b")])[0].value == 1
    assert len(server.bodies) == judge.tries == 5
    assert judge.cost().calls == 2  # what was paid for


def test_a_question_without_an_answer_leaves_its_contest_out(serve: Any, tmp_path: Path) -> None:
    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        texts = responses_in(body)
        return (500, {}) if "bad" in texts else (400, {}) if "huge" in texts else longer(number, body)

    server = serve(reply)
    judge = judge_of(server, tmp_path, retries=2)
    asked = [contest("aa", "bad"), contest("aa", "huge"), contest("aa", "b")]
    verdicts = judge.judge(asked)
    assert [(verdict.value, verdict.reason) for verdict in verdicts] == [
        (None, "no answer after 3 tries"), (None, "refused"), (1, ""),
    ]  # fmt: skip
    assert len(server.bodies) == 2 * 3 + 2 + 2
    # Nothing of it was kept: the next run asks again.
    assert judge.estimate(asked).calls == 4


def test_a_server_that_only_fails_is_left_and_what_it_answered_is_kept(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: longer(number, body) if number < 4 else (500, {}))
    judge = judge_of(server, tmp_path, retries=1, concurrency=2)
    asked = [contest("a" * i, "b" * (i + 1)) for i in range(1, 40)]
    with pytest.raises(TrainingError, match=r"left 10 questions unanswered.*HTTP 500.*go on"):
        judge.judge(asked)
    assert len(server.bodies) <= 4 + 2 * 12
    assert judge.estimate(asked).calls == 78 - 4


@pytest.mark.parametrize(
    ("status", "word"), [(401, "API key"), (403, "API key"), (404, "no such route or model")]
)
def test_what_will_never_work_stops_at_once(serve: Any, tmp_path: Path, status: int, word: str) -> None:
    server = serve(lambda number, body: (status, {"error": {"message": "key sk-secret is wrong"}}))
    with pytest.raises(TrainingError, match=word) as raised:
        judge_of(server, tmp_path, concurrency=2).judge([contest("a" * i, "b") for i in range(2, 40)])
    assert len(server.bodies) <= 2
    assert "secret" not in str(raised.value)


def test_refusals_one_after_the_other_stop_the_judge(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: (400, {}))
    with pytest.raises(TrainingError, match=r"refused .HTTP 400"):
        judge_of(server, tmp_path, concurrency=1).judge([contest("a" * i, "b") for i in range(2, 40)])
    assert len(server.bodies) == 10


def test_refusals_between_answers_only_leave_their_contests_out(serve: Any, tmp_path: Path) -> None:
    """Long examples are refused for good, more than ten of them in all: the others are still judged."""

    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return (400, {}) if "huge" in "".join(responses_in(body)) else longer(number, body)

    asked = [contest("a" * i, f"huge {i}" if i % 2 else "b") for i in range(2, 42)]
    verdicts = judge_of(serve(reply), tmp_path, concurrency=1).judge(asked)
    assert [verdict.value for verdict in verdicts] == [1, None] * 20


def test_a_deadline_ends_a_question_whatever_its_retries(serve: Any, tmp_path: Path) -> None:
    release = threading.Event()

    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        release.wait(60)
        return longer(number, body)

    server = serve(reply)
    judge = judge_of(server, tmp_path, deadline_s=0.3, timeout_s=5, retries=1)
    try:
        verdict = judge.judge([contest("aa", "b")])[0]
    finally:
        release.set()
    assert (verdict.value, verdict.reason) == (None, "no answer within 0.3 s")


def test_so_many_questions_at_once_and_no_more(serve: Any, tmp_path: Path) -> None:
    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.05)
        return longer(number, body)

    server = serve(reply)
    heard: list[tuple[int, int]] = []
    judge = judge_of(server, tmp_path, concurrency=3)
    judge.progress = lambda done, total: heard.append((done, total))
    judge.judge([contest("a" * i, "b") for i in range(2, 12)])
    assert 2 <= server.most_busy <= 3
    assert heard == [(i, 20) for i in range(1, 21)]


def test_the_key_comes_from_the_environment(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(longer)
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge_of(server, tmp_path, api_key_env="JUDGE_KEY").judge([contest("a", "bb")])
    judge_of(server, tmp_path).judge([contest("a", "bbb")])
    given = [headers.get("authorization") for headers in server.headers]
    assert given == ["Bearer sk-1", "Bearer sk-1", None, None]
    assert b"sk-1" not in (tmp_path / "cache.sqlite").read_bytes()


def test_a_prompt_without_its_fields_is_refused(serve: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("{conversation} {first}")
    with pytest.raises(ConfigError, match=r"has no \{second\}"):
        judge_of(serve(longer), tmp_path, prompt=path)
    with pytest.raises(ConfigError, match="cannot be read"):
        judge_of(serve(longer), tmp_path, prompt=tmp_path / "absent.txt")
