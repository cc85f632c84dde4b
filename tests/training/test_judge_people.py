"""People as judges: blind, kept before it is acknowledged, resumed, summed up right."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from training.data import Message, PreferencePair
from training.errors import ConfigError, DataError
from training.judges import Contest
from training.judges.agreement import fleiss_kappa, two_judges
from training.judges.people import (
    PeopleJudge,
    Said,
    VerdictFile,
    keep_tasks,
    make_tasks,
    read_answers,
    read_tasks,
    read_verdicts,
)
from training.judges.people_server import create_app
from training.judges.people_summary import summarize

ROOT = Path(__file__).parents[2]
PROMPT = [{"role": "user", "content": "Say <b>it</b>."}]


def write_answers(path: Path, count: int = 6, **systems: str) -> Path:
    """Each system's response to each example: its text and the number of the example."""
    systems = systems or {"PIT": "better", "Original": "worse"}
    lines = [
        {
            "id": f"e{i}",
            "prompt": PROMPT,
            "responses": {name: f"{text} {i}" for name, text in systems.items()},
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# ---------------------------------------------------------------------------------------- tasks


def test_two_texts_are_one_task_in_however_many_comparisons(tmp_path: Path) -> None:
    first = write_answers(tmp_path / "a.jsonl", 5, PIT="x", Same="x", Original="y")
    second = write_answers(tmp_path / "b.jsonl", 5, Other="z")
    answers = read_answers([first, second])
    tasks = make_tasks(answers, ["PIT vs Original", "Original vs Same", "PIT vs Same", "PIT vs Other"], 3, 1)
    assert len(tasks.tasks) == 6 and len(tasks.places) == 12
    signs = {name: {p.sign for p in tasks.places if p.comparison == name} for name in
             ("PIT vs Original", "Original vs Same", "PIT vs Same")}  # fmt: skip
    assert signs == {"PIT vs Original": {1}, "Original vs Same": {-1}, "PIT vs Same": {0}}
    assert all(task.texts == tuple(sorted(task.texts)) for task in tasks.tasks)
    with pytest.raises(ConfigError, match=r"hold the systems Original, Other, PIT, Same; say which"):
        make_tasks(answers, [], None, 1)
    with pytest.raises(ConfigError, match="'PIT vs Nobody'"):
        make_tasks(answers, ["PIT vs Nobody"], None, 1)


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    one = write_answers(tmp_path / "a.jsonl", 2, PIT="x")
    other = write_answers(tmp_path / "b.jsonl", 2, PIT="y")
    with pytest.raises(
        DataError, match=r"b\.jsonl, line 1: example 'e0' stood before with another response of 'PIT'"
    ):
        read_answers([one, other])
    (tmp_path / "c.jsonl").write_text('{"id": "e0"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl, line 1: no example"):
        read_answers([tmp_path / "c.jsonl"])
    with pytest.raises(DataError, match="cannot be read"):
        read_answers([tmp_path / "absent.jsonl"])


def test_a_directory_keeps_its_contests(tmp_path: Path) -> None:
    answers = read_answers([write_answers(tmp_path / "a.jsonl")])
    tasks = make_tasks(answers, [], None, 1)
    keep_tasks(tmp_path / "out", tasks)
    keep_tasks(tmp_path / "out", tasks)
    assert read_tasks(tmp_path / "out") == tasks
    with pytest.raises(ConfigError, match="other contests"):
        keep_tasks(tmp_path / "out", make_tasks(answers, [], None, 2))
    with pytest.raises(DataError, match="judge serve"):
        summarize(tmp_path)


# ---------------------------------------------------------------------------------------- figures


def judged(directory: Path, *said: Said) -> Path:
    tasks = make_tasks(read_answers([write_answers(directory / "a.jsonl")]), ["Original vs PIT"], None, 1)
    keep_tasks(directory / "out", tasks)
    with VerdictFile(directory / "out") as file:
        for one in said:
            file.add(one, 0)
    return directory / "out"


def test_the_summary_by_hand(tmp_path: Path) -> None:
    """texts[0] is "better", PIT's: a verdict of +1 is a loss of "Original vs PIT"."""
    keys = [
        task.key
        for task in sorted(
            make_tasks(
                read_answers([write_answers(tmp_path / "a.jsonl")]), ["Original vs PIT"], None, 1
            ).tasks,
            key=lambda task: task.texts,
        )
    ]
    ann = [1, 1, -1, 0, None]
    bob = [1, -1, -1, 1]
    out = judged(
        tmp_path,
        *(Said("ann", key, value) for key, value in zip(keys, ann, strict=False)),
        *(Said("bob", key, value) for key, value in zip(keys, bob, strict=False)),
    )
    found = summarize(out)
    result = found.comparisons["Original vs PIT"]
    assert result is not None
    # By majority: lose, tie (they differ), win, lose (one tie), skipped, not judged.
    assert (result.rate.n, result.rate.win, result.rate.lose) == (4, 25, 50)
    assert result.missing == {"skipped": 1, "not judged": 1}
    assert found.annotators == {"ann": (5, 1), "bob": (4, 0)}
    two = found.pairs["ann and bob"]
    assert two is not None and (two.n, two.percent) == (4, 50)
    # Chance: ann 2/4, 1/4, 1/4 (+1, -1, 0), bob 2/4, 2/4, 0: 1/4 + 1/8 = 3/8.
    assert two.kappa == pytest.approx((0.5 - 0.375) / 0.625)


def test_an_evaluation_reads_the_same_verdicts_whichever_way_round(tmp_path: Path) -> None:
    key = (
        make_tasks(read_answers([write_answers(tmp_path / "a.jsonl", 1)]), ["Original vs PIT"], None, 1)
        .tasks[0]
        .key
    )
    judge = PeopleJudge(judged(tmp_path, Said("ann", key, 1)))
    example = PreferencePair("e0", (Message(role="user", content="Say <b>it</b>."),), "w", "l", "t")
    verdicts = judge.judge(
        [
            Contest(example, "better 0", "worse 0"),
            Contest(example, "worse 0", "better 0"),
            Contest(example, "worse 0", "worse 0"),
            Contest(example, "worse 0", "other"),
        ]
    )
    assert [(v.value, v.reason) for v in verdicts] == [
        (1, ""), (-1, ""), (0, "the same text"), (None, "not judged"),
    ]  # fmt: skip
    assert PeopleJudge(tmp_path).judge([Contest(example, "a", "b")])[0].reason == "not judged"


def test_kappas_by_hand() -> None:
    # Cohen 1960's kind of table: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no.
    first = [1] * 25 + [-1] * 25
    second = [1] * 20 + [-1] * 5 + [1] * 10 + [-1] * 15
    two = two_judges(first, second)
    assert two is not None and two.percent == 70
    assert two.kappa == pytest.approx(0.4)
    assert two_judges([1, None], [None, 1]) is None
    same = two_judges([1, 1], [1, 1])
    assert same is not None and (same.percent, same.kappa) == (100, None)
    # Three raters, two items: P = (1 + 1/3) / 2 = 2/3, Pe = (5/6)^2 + (1/6)^2 = 26/36.
    assert fleiss_kappa([[1, 1, 1], [1, 1, -1]]) == pytest.approx((2 / 3 - 26 / 36) / (10 / 36))
    assert fleiss_kappa([[1], [0]]) is None


@given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0, 1])), min_size=1, max_size=30))
def test_law_agreement_does_not_depend_on_who_is_first(pairs: list[tuple[int, int]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    assert two_judges(first, second) == two_judges(second, first)


# ---------------------------------------------------------------------------------------- the file


def test_a_line_that_was_cut_short_is_removed_and_the_rest_counts(tmp_path: Path) -> None:
    with VerdictFile(tmp_path) as file:
        file.add(Said("ann", "k1", 1), 0)
        file.add(Said("ann", "k2", -1), 1)
        file.undo("ann")
        file.add(Said("ann", "k3", 0), 1)
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(path.read_bytes() + b'{"annotator": "ann", "key": "k4"')
    assert [said.key for said in read_verdicts(tmp_path)["ann"]] == ["k1", "k3"]
    with VerdictFile(tmp_path) as file:
        assert [said.key for said in file.said["ann"]] == ["k1", "k3"]
        file.add(Said("bob", "k1", None), 0)
        with pytest.raises(ConfigError, match="in use"):
            VerdictFile(tmp_path)
    assert read_verdicts(tmp_path) == {
        "ann": [Said("ann", "k1", 1), Said("ann", "k3", 0)], "bob": [Said("bob", "k1", None)],
    }  # fmt: skip


def test_a_verdict_is_on_the_disk_before_add_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    with VerdictFile(tmp_path) as file:
        monkeypatch.setattr("os.fsync", lambda _: synced.append((tmp_path / "verdicts.jsonl").read_bytes()))
        file.add(Said("ann", "k1", 1), 0)
        assert len(synced) == 1 and b'"k1"' in synced[0]
        file.undo("ann")
        assert len(synced) == 2 and b'"undo"' in synced[1]


class FullDisk:
    """A file on a disk that fills up in the middle of a line."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        return int(self._file.write(data[:20]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_loses_the_verdict_not_the_file(tmp_path: Path) -> None:
    tasks = make_tasks(read_answers([write_answers(tmp_path / "a.jsonl")]), [], None, 1)
    with VerdictFile(tmp_path) as file:
        http = TestClient(create_app(tasks, file, ["testserver"]))
        said = {"annotator": "ann", "key": tasks.tasks[0].key, "choice": "tie"}
        real, file._file = file._file, FullDisk(file._file)  # type: ignore[assignment]
        answer = http.post("/api/verdict", json=said)
        assert answer.status_code == 507 and "not kept" in answer.json()["detail"]
        assert http.get("/api/task?annotator=ann").json()["done"] == 0
        file._file = real
        assert http.post("/api/verdict", json=said).json()["done"] == 1
    assert read_verdicts(tmp_path) == {"ann": [Said("ann", tasks.tasks[0].key, 0)]}


# ---------------------------------------------------------------------------------------- the page


class Page:
    """`pit-train judge serve` as a process of its own, and a browser's requests to it."""

    def __init__(self, answers: Path, output: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "training.cli",
            "judge",
            "serve",
            str(answers),
            "--output",
            str(output),
        ]
        self._log = output.parent / "serve.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--port", "0"], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                env={"PATH": "", "COLUMNS": "400", "TERM": "dumb"},
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while (found := re.search(r"http://127\.0\.0\.1:\d+", self._log.read_text())) is None:
            assert self.process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        self.http = httpx.Client(base_url=found[0], timeout=60)

    def task(self, name: str) -> Any:
        return self.http.get("/api/task", params={"annotator": name}).json()

    def say(self, name: str, key: str, choice: str) -> httpx.Response:
        return self.http.post("/api/verdict", json={"annotator": name, "key": key, "choice": choice})

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(60)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    found = Page(write_answers(tmp_path / "a.jsonl"), tmp_path / "out")
    yield found
    found.stop(signal.SIGKILL)


def test_the_page_from_the_first_verdict_to_a_kill_and_on(page: Page, tmp_path: Path) -> None:
    """All in one process to save its start: judging, undo, a lost answer, kill -9, resuming, the summary."""
    state = page.task("ann")
    assert (state["done"], state["total"]) == (0, 6)
    assert set(state["task"]) == {"key", "prompt", "left", "right"}
    assert state["task"]["prompt"] == PROMPT
    assert "PIT" not in json.dumps(state) and "Original" not in json.dumps(state)
    first = state["task"]
    side = "left" if first["left"].startswith("better") else "right"
    after = page.say("ann", first["key"], side).json()
    assert after["done"] == 1 and after["task"]["key"] != first["key"]
    assert page.say("ann", first["key"], side).json()["done"] == 1  # sent again, kept once
    assert page.say("ann", first["key"], "tie").status_code == 409
    assert page.say("ann", "unknown", "tie").status_code == 404
    assert page.say("a<b>", first["key"], "tie").status_code == 422
    assert page.say("ann", first["key"], "best").status_code == 422
    undone = page.http.post("/api/undo", json={"annotator": "ann"}).json()
    assert (undone["done"], undone["task"]) == (0, first)
    sides = []
    for name in ("ann", "bob"):
        while (task := page.task(name)["task"]) is not None:
            better = "left" if task["left"].startswith("better") else "right"
            sides.append(better)
            assert page.say(name, task["key"], better).status_code == 200
            if name == "bob" and page.task(name)["done"] == 4:
                break
    assert set(sides) == {"left", "right"}
    page.stop(signal.SIGKILL)
    again = Page(tmp_path / "a.jsonl", tmp_path / "out")
    try:
        assert again.task("bob")["done"] == 4 and again.task("ann")["task"] is None
    finally:
        again.stop()
    found = summarize(tmp_path / "out")
    result = found.comparisons["Original vs PIT"]
    assert result is not None and (result.rate.lose, result.rate.n) == (100, 6)
    two = found.pairs["ann and bob"]
    assert two is not None and (two.n, two.percent) == (4, 100)
    command = [sys.executable, "-m", "training.cli", "judge", "summary", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "100.0" in done.stdout and "bob: 4 of 6" in done.stdout


def test_what_the_page_may_do_and_who_may_ask(page: Page) -> None:
    """Loopback only, a strict policy, nothing from other hosts' names or other sites' forms."""
    answer = page.http.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in answer.text and " style=" not in answer.text and "onclick" not in answer.text
    script = page.http.get("/page.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "innerHTML" not in script.text and "insertAdjacentHTML" not in script.text
    assert page.http.get("/page.css").headers["content-type"].startswith("text/css")
    assert page.http.get("/page.html").status_code == 422
    assert page.http.get("/", headers={"host": "evil.example"}).status_code == 400
    key = page.task("ann")["task"]["key"]
    body = json.dumps({"annotator": "ann", "key": key, "choice": "tie"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {"content-type": kind} if kind else {}
        assert page.http.post("/api/verdict", content=body, headers=headers).status_code == 422, kind
    assert page.task("ann")["done"] == 0
    assert page.http.get("/docs").status_code == page.http.get("/openapi.json").status_code == 404
